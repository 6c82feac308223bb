"""Numbers of the paper (arXiv 2412.04139v4) to compare results with; none of them was measured by us.

Single benchmarks of Table 2 are also on the released models' cards (huggingface.co/MonetLLM). Tables 3, 4 and 5 are our
numbers for the tables of sections 5.2 and 5.3, in their order.
"""

from __future__ import annotations

PAPER = "Park, Ahn, Kim, Kang: Monet, ICLR 2025, arXiv 2412.04139v4"
BENCHMARKS = ("MMLU", "ARC", "WinoGrande", "PIQA", "SIQA", "OBQA", "HellaSwag", "CSQA")

# Table 2: shots -> model -> accuracies of the eight benchmarks in the order above, then their average.
GENERAL: dict[int, dict[str, tuple[float, ...]]] = {
    0: {
        "Monet-HD 850M": (0.320, 0.460, 0.506, 0.699, 0.416, 0.364, 0.465, 0.337, 0.446),
        "Monet-VD 850M": (0.328, 0.456, 0.530, 0.708, 0.417, 0.356, 0.488, 0.343, 0.453),
        "Monet-HD 1.4B": (0.338, 0.471, 0.538, 0.714, 0.418, 0.382, 0.501, 0.339, 0.463),
        "Monet-VD 1.4B": (0.352, 0.495, 0.522, 0.727, 0.423, 0.418, 0.529, 0.363, 0.478),
        "Monet-HD 4.1B": (0.375, 0.558, 0.560, 0.741, 0.427, 0.414, 0.571, 0.379, 0.503),
        "Monet-VD 4.1B": (0.380, 0.547, 0.557, 0.751, 0.437, 0.424, 0.604, 0.389, 0.511),
    },
    5: {
        "Monet-HD 850M": (0.332, 0.537, 0.510, 0.697, 0.409, 0.346, 0.479, 0.420, 0.466),
        "Monet-VD 850M": (0.341, 0.548, 0.520, 0.709, 0.437, 0.368, 0.504, 0.454, 0.485),
        "Monet-HD 1.4B": (0.352, 0.544, 0.530, 0.720, 0.432, 0.360, 0.518, 0.441, 0.487),
        "Monet-VD 1.4B": (0.360, 0.547, 0.526, 0.730, 0.441, 0.422, 0.551, 0.501, 0.510),
        "Monet-HD 4.1B": (0.385, 0.603, 0.545, 0.742, 0.463, 0.412, 0.588, 0.545, 0.535),
        "Monet-VD 4.1B": (0.398, 0.625, 0.564, 0.761, 0.470, 0.438, 0.619, 0.525, 0.550),
    },
}

# Tables 3 and 10, CodeMonet 1.4B VD: the smallest and the largest value over the six languages.
CODE_TARGET = (-9.1, -30.6)  # points of pass@100 in the language whose experts are removed
CODE_OTHERS = (-0.6, -1.8)  # in the other languages
CODE_EXPERTS = (48_621, 175_082)

# Tables 9 and 11, Monet-VD 1.4B.
DOMAIN_TARGET = (-0.37, -5.49)  # points of accuracy in the category whose experts are removed
DOMAIN_OTHERS = (0.04, -0.51)
DOMAIN_EXPERTS = {"other": 11_045, "history": 118_407}
DOMAIN_MEAN_SHARE = 2.2  # percent of all experts, mean over categories

# Tables 4 and 5, Monet-VD 1.4B: by the threshold of Pearson's r; None for the unmasked model.
THRESHOLDS = (0.2, 0.1, 0.05)
RTP_SHARE = {0.2: 1.0, 0.1: 4.1, 0.05: 14.4}
RTP_EXPECTED_MAXIMUM = {None: 0.795, 0.2: 0.767, 0.1: 0.657, 0.05: 0.552}
RTP_PROBABILITY = {None: 0.926, 0.2: 0.909, 0.1: 0.768, 0.05: 0.564}
RTP_GENERAL = {None: 0.478, 0.2: 0.479, 0.1: 0.478, 0.05: 0.467}
TOXIGEN_SHARE = {0.2: 1.4, 0.1: 5.4, 0.05: 15.0}
TOXIGEN_HATE = {None: 0.642, 0.2: 0.643, 0.1: 0.504, 0.05: 0.430}

# Table 8: billions of parameters, and TFLOP of a forward over 2M tokens.
PARAMETERS = {"LLaMA": 1.345, "Monet": 1.465, "Monet, a router a layer": 1.767}
TFLOP = {"LLaMA": 6225.52, "Monet": 6745.30, "Monet, a router a layer": 8017.81}
