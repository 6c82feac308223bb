// Reads only the weights that active keys need: products with gathered rows, and sums of gathered rows.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace monet {

using at::BFloat16;
using at::Tensor;

constexpr int64_t LANES = 16;
using Lanes = float __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
using Halves = uint16_t __attribute__((vector_size(2 * LANES)));

// The first N entries, followed by zeros.
template <int64_t N = LANES>
inline Lanes load(const float* from) {
  Lanes lanes = {};
  std::memcpy(&lanes, from, N * sizeof(float));
  return lanes;
}

template <int64_t N = LANES>
inline Lanes load(const BFloat16* from) {
  Halves halves = {};
  std::memcpy(&halves, from, N * sizeof(BFloat16));
  const Words words = __builtin_convertvector(halves, Words) << 16;
  Lanes lanes;
  std::memcpy(&lanes, &words, sizeof lanes);
  return lanes;
}

inline void store(float* to, const Lanes& lanes) { std::memcpy(to, &lanes, sizeof lanes); }

inline float total(const Lanes& lanes) {
  float sum[LANES];
  store(sum, lanes);
  for (int64_t half = LANES / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) sum[l] += sum[l + half];
  return sum[0];
}

// Which tokens use which keys; lists only keys that at least one token uses.
struct Users {
  std::vector<int64_t> keys;
  std::vector<std::vector<int32_t>> tokens;  // tokens that use each of these keys
};

// A token uses a key if any of its `repeats` rows (heads) has a nonzero or a NaN among the key's `width` entries.
Users find_users(const float* values, int64_t T, int64_t repeats, int64_t E, int64_t width) {
  std::vector<uint8_t> used(T * E);
  at::parallel_for(0, T, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t r = 0; r < repeats; ++r) {
        const float* row = values + (t * repeats + r) * E * width;
        uint8_t* flags = used.data() + t * E;
        if (width == 1) {
          for (int64_t e = 0; e < E; ++e) flags[e] |= row[e] != 0.0f;
          continue;
        }
        for (int64_t e = 0; e < E; ++e) {
          bool any = false;
          for (int64_t m = 0; m < width; ++m) any |= row[e * width + m] != 0.0f;
          flags[e] |= any;
        }
      }
  });
  std::vector<std::vector<int32_t>> tokens(E);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t e = 0; e < E; ++e)
      if (used[t * E + e]) tokens[e].push_back(static_cast<int32_t>(t));
  Users users;
  for (int64_t e = 0; e < E; ++e)
    if (!tokens[e].empty()) {
      users.keys.push_back(e);
      users.tokens.push_back(std::move(tokens[e]));
    }
  return users;
}

// out[r][n] = <row r of w, x[n]>
template <int R, int N, typename W>
void dots(const W* w, int64_t stride, const float* const* x, int64_t D, float (&out)[4][4]) {
  Lanes sums[R][N] = {};
  int64_t d = 0;
  for (; d + LANES <= D; d += LANES) {
    Lanes of_w[R];
    for (int r = 0; r < R; ++r) of_w[r] = load(w + r * stride + d);
    for (int n = 0; n < N; ++n) {
      const Lanes of_x = load(x[n] + d);
      for (int r = 0; r < R; ++r) sums[r][n] += of_w[r] * of_x;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) {
      float sum = total(sums[r][n]);
      for (int64_t rest = d; rest < D; ++rest) sum += static_cast<float>(w[r * stride + rest]) * x[n][rest];
      out[r][n] = sum;
    }
}

template <int R, typename W>
void dots(int n, const W* w, int64_t stride, const float* const* x, int64_t D, float (&out)[4][4]) {
  if (n == 1) return dots<R, 1>(w, stride, x, D, out);
  if (n == 2) return dots<R, 2>(w, stride, x, D, out);
  if (n == 3) return dots<R, 3>(w, stride, x, D, out);
  return dots<R, 4>(w, stride, x, D, out);
}

template <typename W>
void linear_of_users(
    const Users& users, const float* x_TD, const W* w_PD, const W* bias_P, W* p_TP, int64_t E, int64_t M, int64_t D) {
  const int64_t blocks = (M + 3) / 4;
  at::parallel_for(0, static_cast<int64_t>(users.keys.size()) * blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const auto& tokens = users.tokens[unit / blocks];
      const int64_t first = users.keys[unit / blocks] * M + unit % blocks * 4;
      const int rows = static_cast<int>(std::min<int64_t>(4, M - unit % blocks * 4));
      for (size_t start = 0; start < tokens.size(); start += 4) {
        const int n = static_cast<int>(std::min<size_t>(4, tokens.size() - start));
        const float* x[4];
        for (int i = 0; i < n; ++i) x[i] = x_TD + tokens[start + i] * D;
        float out[4][4];
        const W* w = w_PD + first * D;
        if (rows == 4) dots<4>(n, w, D, x, D, out);
        else if (rows == 3) dots<3>(n, w, D, x, D, out);
        else if (rows == 2) dots<2>(n, w, D, x, D, out);
        else dots<1>(n, w, D, x, D, out);
        for (int i = 0; i < n; ++i)
          for (int r = 0; r < rows; ++r)
            p_TP[tokens[start + i] * E * M + first + r] =
                static_cast<W>(out[r][i] + static_cast<float>(bias_P[first + r]));
      }
    }
  });
}

// out[n] += sum of coefficient[n][r] * w[r], over the columns that remain after whole blocks of C * LANES
template <int N, int C, typename W>
int64_t add_blocks(
    const W* const* w, int64_t rows, const float* const* coefficients, float* const* out, int64_t d, int64_t width) {
  for (; d + C * LANES <= width; d += C * LANES) {
    Lanes sums[N][C];
    for (int n = 0; n < N; ++n)
      for (int c = 0; c < C; ++c) sums[n][c] = load(out[n] + d + c * LANES);
    for (int64_t r = 0; r < rows; ++r) {
      Lanes of_w[C];
      for (int c = 0; c < C; ++c) of_w[c] = load(w[r] + d + c * LANES);
      for (int n = 0; n < N; ++n)
        for (int c = 0; c < C; ++c) sums[n][c] += of_w[c] * coefficients[n][r];
    }
    for (int n = 0; n < N; ++n)
      for (int c = 0; c < C; ++c) store(out[n] + d + c * LANES, sums[n][c]);
  }
  return d;
}

template <int N, typename W>
void add_rows(const W* const* w, int64_t rows, const float* const* coefficients, float* const* out, int64_t width) {
  int64_t d = add_blocks<N, 4>(w, rows, coefficients, out, 0, width);
  d = add_blocks<N, 1>(w, rows, coefficients, out, d, width);
  for (; d < width; ++d)
    for (int n = 0; n < N; ++n)
      for (int64_t r = 0; r < rows; ++r) out[n][d] += coefficients[n][r] * static_cast<float>(w[r][d]);
}

template <typename W>
void add_rows(
    int n, const W* const* w, int64_t rows, const float* const* coefficients, float* const* out, int64_t width) {
  if (n == 1) return add_rows<1>(w, rows, coefficients, out, width);
  if (n == 2) return add_rows<2>(w, rows, coefficients, out, width);
  if (n == 3) return add_rows<3>(w, rows, coefficients, out, width);
  return add_rows<4>(w, rows, coefficients, out, width);
}

// Weight stored as [P, width]; output rows are D apart.
template <typename W>
void sum_rows(
    const Users& users, const float* y_TP, const W* w_PD, float* out_TD, int64_t P, int64_t M, int64_t width,
    int64_t D, int64_t begin, int64_t end) {
  std::vector<float> picked(4 * M);
  std::vector<const W*> rows(M);
  for (size_t u = 0; u < users.keys.size(); ++u) {
    const auto& tokens = users.tokens[u];
    const int64_t first = users.keys[u] * M;
    for (size_t start = 0; start < tokens.size(); start += 4) {
      const int n = static_cast<int>(std::min<size_t>(4, tokens.size() - start));
      const float* coefficients[4];
      float* out[4];
      for (int i = 0; i < n; ++i) {
        coefficients[i] = picked.data() + i * M;
        out[i] = out_TD + tokens[start + i] * D + begin;
      }
      int64_t used = 0;
      for (int64_t m = 0; m < M; ++m) {
        bool any = false;
        for (int i = 0; i < n; ++i) {
          picked[i * M + used] = y_TP[tokens[start + i] * P + first + m];
          any |= picked[i * M + used] != 0.0f;
        }
        rows[used] = w_PD + (first + m) * width + begin;
        used += any;
      }
      add_rows(n, rows.data(), used, coefficients, out, end - begin);
    }
  }
}

// Weight stored as [D, P], as in nn.Linear: a key's M entries of one output column are contiguous, about one cache
// line. A tile has few rows, so that their pages stay in the TLB; a line is prefetched some keys before it is needed.
constexpr int64_t TILE = 16;
constexpr size_t AHEAD = 4;

template <typename W>
void ask_for(const W* w_DP, int64_t P, int64_t rows, int64_t entry) {
  for (int64_t r = 0; r < rows; ++r) __builtin_prefetch(w_DP + r * P + entry);
}

// One token: every output column is a product of the token's values with the entries read from one row of the weight.
template <typename W>
void sum_columns_of_one(
    const Users& users, const float* y_P, const W* w_DP, float* out_D, int64_t P, int64_t M, int64_t begin,
    int64_t end) {
  for (int64_t d = begin; d < end; d += TILE) {
    const int64_t rows = std::min(TILE, end - d);
    const W* w = w_DP + d * P;
    Lanes sums[TILE] = {};
    float rest[TILE] = {};
    for (size_t u = 0; u < users.keys.size(); ++u) {
      if (u + AHEAD < users.keys.size()) ask_for(w, P, rows, users.keys[u + AHEAD] * M);
      int64_t p = users.keys[u] * M;
      const int64_t stop = p + M;
      for (; p + LANES <= stop; p += LANES) {
        const Lanes of_y = load(y_P + p);
        for (int64_t r = 0; r < rows; ++r) sums[r] += of_y * load(w + r * P + p);
      }
      for (; p + LANES / 2 <= stop; p += LANES / 2) {
        const Lanes of_y = load<LANES / 2>(y_P + p);
        for (int64_t r = 0; r < rows; ++r) sums[r] += of_y * load<LANES / 2>(w + r * P + p);
      }
      for (; p < stop; ++p)
        for (int64_t r = 0; r < rows; ++r) rest[r] += y_P[p] * static_cast<float>(w[r * P + p]);
    }
    for (int64_t r = 0; r < rows; ++r) out_D[d + r] += total(sums[r]) + rest[r];
  }
}

// Several tokens: a key's part of a tile is transposed into rows, which all tokens that use the key then share.
template <typename W>
void sum_columns(
    const Users& users, const float* y_TP, const W* w_DP, float* out_TD, int64_t P, int64_t M, int64_t D,
    int64_t begin, int64_t end) {
  std::vector<float> turned(M * TILE);
  std::vector<const float*> pointers(M);
  for (int64_t m = 0; m < M; ++m) pointers[m] = turned.data() + m * TILE;
  for (int64_t d = begin; d < end; d += TILE) {
    const int64_t rows = std::min(TILE, end - d);
    const W* w = w_DP + d * P;
    for (size_t u = 0; u < users.keys.size(); ++u) {
      if (u + AHEAD < users.keys.size()) ask_for(w, P, rows, users.keys[u + AHEAD] * M);
      const int64_t first = users.keys[u] * M;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t m = 0; m < M; ++m) turned[m * TILE + r] = static_cast<float>(w[r * P + first + m]);
      const auto& tokens = users.tokens[u];
      for (size_t start = 0; start < tokens.size(); start += 4) {
        const int n = static_cast<int>(std::min<size_t>(4, tokens.size() - start));
        const float* coefficients[4];
        float* out[4];
        for (int i = 0; i < n; ++i) {
          coefficients[i] = y_TP + tokens[start + i] * P + first;
          out[i] = out_TD + tokens[start + i] * D + d;
        }
        add_rows(n, pointers.data(), M, coefficients, out, rows);
      }
    }
  }
}

// One product of a sum: values (T, P) times a weight, added to output columns from `start` on.
struct Term {
  Users users;
  Tensor y_TEM, w_PD;
  int64_t start;
};

// Adds the part that belongs to the columns [begin, end) of the output.
template <typename W>
void add_term(const Term& term, float* out_TD, int64_t D, int64_t begin, int64_t end) {
  const int64_t T = term.y_TEM.size(0), M = term.y_TEM.size(2), P = term.w_PD.size(0), width = term.w_PD.size(1);
  begin = std::max<int64_t>(begin - term.start, 0);
  end = std::min(end - term.start, width);
  if (begin >= end) return;
  const float* y = term.y_TEM.const_data_ptr<float>();
  const W* w = term.w_PD.const_data_ptr<W>();
  float* out = out_TD + term.start;
  if (term.w_PD.is_contiguous()) sum_rows<W>(term.users, y, w, out, P, M, width, D, begin, end);
  else if (T == 1) sum_columns_of_one<W>(term.users, y, w, out, P, M, begin, end);
  else sum_columns<W>(term.users, y, w, out, P, M, D, begin, end);
}

}  // namespace monet
