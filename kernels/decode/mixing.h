// Mixing the hidden units of one token over its active keys, with or without a mask.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace monet {

// The nonzero routing probabilities of a token on one side.
struct Side {
  std::vector<int32_t> keys;
  std::vector<float> g;  // (H, keys)

  void read(const float* g_HE, int64_t H, int64_t E) {
    keys.clear();
    for (int64_t e = 0; e < E; ++e) {
      bool any = false;
      for (int64_t h = 0; h < H; ++h) any |= g_HE[h * E + e] != 0.0f;
      if (any) keys.push_back(static_cast<int32_t>(e));
    }
    g.resize(H * keys.size());
    for (int64_t h = 0; h < H; ++h)
      for (size_t k = 0; k < keys.size(); ++k) g[h * keys.size() + k] = g_HE[h * E + keys[k]];
  }
};

// y[j] = sum_i w[i, j] a[i] and c[j] = sum_i w[i, j] for one token; `y` and `c` stay zero at inactive keys.
struct Mixer {
  int64_t H, E, M;
  Side first, second;
  std::vector<float> weights, sums;

  // Each routing row sums to one, so without a mask the sum over the first side drops out of c.
  void unmasked(const float* a, float* y, float* c) {
    const size_t J = second.keys.size(), I = first.keys.size();
    sums.assign(M, 0.0f);
    for (int64_t h = 0; h < H; ++h) {
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (size_t i = 0; i < I; ++i) {
        const float g = first.g[h * I + i];
        if (g == 0.0f) continue;
        for (int64_t m = 0; m < M; ++m) sums[m] += g * a[first.keys[i] * M + m];
      }
      for (size_t j = 0; j < J; ++j) {
        const float g = second.g[h * J + j];
        if (g == 0.0f) continue;
        c[second.keys[j]] += g;
        for (int64_t m = 0; m < M; ++m) y[second.keys[j] * M + m] += g * sums[m];
      }
    }
  }

  template <typename K>
  void masked(const float* a, const K* keep, int64_t to_i, int64_t to_j, float* y, float* c) {
    const size_t J = second.keys.size(), I = first.keys.size();
    for (size_t i = 0; i < I; ++i) {
      weights.assign(J, 0.0f);
      for (int64_t h = 0; h < H; ++h) {
        const float g = first.g[h * I + i];
        if (g == 0.0f) continue;
        for (size_t j = 0; j < J; ++j) weights[j] += g * second.g[h * J + j];
      }
      const K* row = keep + first.keys[i] * to_i;
      const float* from = a + first.keys[i] * M;
      for (size_t j = 0; j < J; ++j) {
        // A removed pair is multiplied by zero, not skipped: a mask must not hide a NaN.
        const float w = weights[j] * static_cast<float>(row[second.keys[j] * to_j]);
        c[second.keys[j]] += w;
        for (int64_t m = 0; m < M; ++m) y[second.keys[j] * M + m] += w * from[m];
      }
    }
  }
};

}  // namespace monet
