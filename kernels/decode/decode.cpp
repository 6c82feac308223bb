// Expert layers on the CPU: they read only the weights that active keys need, and copy none.
//
// Dimensions use the project's letters: T tokens, H heads, E keys a side, M hidden units of a key, P = E * M, D model
// width. Weights are float32 or bfloat16; every sum is accumulated in float32. reference.py has the same in torch.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "gathered.h"
#include "mixing.h"

namespace {

using at::BFloat16;
using at::Tensor;
using namespace monet;

void check(bool fits, const char* what) { TORCH_CHECK_VALUE(fits, "monet: ", what); }

Tensor as_float(const Tensor& tensor) { return tensor.to(at::kFloat).contiguous(); }

template <typename Function>
void for_type(const Tensor& weight, Function function) {
  if (weight.scalar_type() == at::kBFloat16) return function(BFloat16{});
  check(weight.scalar_type() == at::kFloat, "weights must be float32 or bfloat16");
  function(float{});
}

int64_t count_active(const Tensor& g_THE) {
  const int64_t T = g_THE.size(0), H = g_THE.size(1), E = g_THE.size(2);
  const Tensor g = as_float(g_THE);
  const float* values = g.const_data_ptr<float>();
  std::vector<uint8_t> used(E);
  int64_t count = 0;
  for (int64_t t = 0; t < T; ++t) {
    std::fill(used.begin(), used.end(), 0);
    for (int64_t h = 0; h < H; ++h)
      for (int64_t e = 0; e < E; ++e) used[e] |= values[(t * H + h) * E + e] != 0.0f;
    for (int64_t e = 0; e < E; ++e) count += used[e];
  }
  return count;
}

Tensor active_linear(const Tensor& x_TD, const Tensor& g_THE, const Tensor& w_PD, const Tensor& bias_P) {
  const int64_t T = x_TD.size(0), D = x_TD.size(1), H = g_THE.size(1), E = g_THE.size(2), M = w_PD.size(0) / E;
  check(g_THE.size(0) == T && w_PD.size(0) == E * M && w_PD.size(1) == D && bias_P.numel() == E * M, "shapes disagree");
  check(bias_P.scalar_type() == w_PD.scalar_type(), "weight and bias must share a dtype");
  const Tensor x = as_float(x_TD), g = as_float(g_THE), w = w_PD.contiguous(), bias = bias_P.contiguous();
  const Users users = find_users(g.const_data_ptr<float>(), T, H, E, 1);
  Tensor p_TEM = at::zeros({T, E, M}, w.options());
  for_type(w, [&](auto type) {
    using W = decltype(type);
    linear_of_users<W>(users, x.const_data_ptr<float>(), w.const_data_ptr<W>(), bias.const_data_ptr<W>(),
                       p_TEM.mutable_data_ptr<W>(), E, M, D);
  });
  return p_TEM;
}

std::tuple<Tensor, Tensor> active_mix(
    const Tensor& a_TEM, const Tensor& g1_THE, const Tensor& g2_THE, const std::optional<Tensor>& keep_SEE,
    const std::optional<Tensor>& index_T) {
  const int64_t T = a_TEM.size(0), E = a_TEM.size(1), M = a_TEM.size(2), H = g1_THE.size(1);
  for (const Tensor& g : {g1_THE, g2_THE})
    check(g.size(0) == T && g.size(1) == H && g.size(2) == E, "routing does not fit the hidden units");
  const Tensor a = as_float(a_TEM), g1 = as_float(g1_THE), g2 = as_float(g2_THE);
  Tensor keep, index, y_TEM = at::zeros_like(a), c_TE = at::zeros({T, E}, a.options());
  if (keep_SEE) {
    keep = keep_SEE->scalar_type() == at::kBool ? *keep_SEE : keep_SEE->to(at::kFloat);
    check(keep.dim() == 3 && keep.size(1) == E && keep.size(2) == E && keep.size(0) > 0, "masks do not fit the keys");
    if (index_T) {
      index = index_T->contiguous();
      check(index.numel() == T && index.scalar_type() == at::kLong, "there must be an int64 mask index a token");
      check(T == 0 || index.max().item<int64_t>() < keep.size(0), "a mask index is beyond the masks");
    }
  }
  const float *values = a.const_data_ptr<float>(), *g1s = g1.const_data_ptr<float>(), *g2s = g2.const_data_ptr<float>();
  const int64_t* mask_of = index.defined() ? index.const_data_ptr<int64_t>() : nullptr;
  float *ys = y_TEM.mutable_data_ptr<float>(), *cs = c_TE.mutable_data_ptr<float>();
  at::parallel_for(0, T, 1, [&](int64_t begin, int64_t end) {
    Mixer mixer{H, E, M, {}, {}, {}, {}};
    for (int64_t t = begin; t < end; ++t) {
      mixer.first.read(g1s + t * H * E, H, E);
      mixer.second.read(g2s + t * H * E, H, E);
      const float* from = values + t * E * M;
      float *y = ys + t * E * M, *c = cs + t * E;
      const int64_t mask = mask_of ? mask_of[t] : 0;
      if (!keep.defined() || mask < 0) {
        mixer.unmasked(from, y, c);
      } else if (keep.scalar_type() == at::kBool) {
        mixer.masked(from, keep.const_data_ptr<bool>() + mask * keep.stride(0), keep.stride(1), keep.stride(2), y, c);
      } else {
        mixer.masked(from, keep.const_data_ptr<float>() + mask * keep.stride(0), keep.stride(1), keep.stride(2), y, c);
      }
    }
  });
  return {y_TEM.to(a_TEM.scalar_type()), c_TE.to(a_TEM.scalar_type())};
}

Tensor active_sum(at::TensorList values_TEM, at::TensorList weights_PD, at::IntArrayRef starts, int64_t D) {
  check(!values_TEM.empty() && values_TEM.size() == weights_PD.size() && starts.size() == weights_PD.size(),
        "there must be a weight and a first column for each value");
  const int64_t T = values_TEM[0].size(0);
  std::vector<Term> terms;
  for (size_t n = 0; n < values_TEM.size(); ++n) {
    const int64_t E = values_TEM[n].size(1), M = values_TEM[n].size(2);
    Tensor w = weights_PD[n];
    check(values_TEM[n].size(0) == T && w.size(0) == E * M, "shapes disagree");
    check(starts[n] >= 0 && starts[n] + w.size(1) <= D, "a weight's columns lie outside the output");
    check(w.scalar_type() == weights_PD[0].scalar_type(), "weights must share a dtype");
    if (!w.is_contiguous() && !w.t().is_contiguous()) w = w.contiguous();
    const Tensor y = as_float(values_TEM[n]);
    Users users = find_users(y.const_data_ptr<float>(), T, 1, E, M);
    terms.push_back({std::move(users), y, w, starts[n]});
  }
  Tensor out_TD = at::zeros({T, D}, at::TensorOptions().dtype(at::kFloat));
  float* out = out_TD.mutable_data_ptr<float>();
  for_type(weights_PD[0], [&](auto type) {
    // Threads split the columns, so the result does not depend on the number of threads.
    at::parallel_for(0, (D + 63) / 64, 1, [&](int64_t begin, int64_t end) {
      for (const Term& term : terms) add_term<decltype(type)>(term, out, D, begin * 64, std::min(D, end * 64));
    });
  });
  return out_TD.to(weights_PD[0].scalar_type());
}

// Whether `rows` is still the transpose of `w` at sampled entries, spread over all columns of `w`.
bool is_transposed(const Tensor& w_DP, const Tensor& rows_PD, int64_t seed) {
  const int64_t D = w_DP.size(0), P = w_DP.size(1), size = w_DP.element_size();
  check(rows_PD.size(0) == P && rows_PD.size(1) == D && rows_PD.scalar_type() == w_DP.scalar_type(), "no transpose");
  constexpr int64_t SAMPLES = 512;
  const char* w = static_cast<const char*>(w_DP.const_data_ptr());
  const char* rows = static_cast<const char*>(rows_PD.const_data_ptr());
  int64_t different = 0;
  for (int64_t k = 0; k < std::min(SAMPLES, D * P); ++k) {
    const uint64_t mixed = static_cast<uint64_t>(seed * SAMPLES + k) * 0x9E3779B97F4A7C15u;
    const int64_t d = static_cast<int64_t>(mixed >> 40) % D;
    const int64_t p = (k * P / SAMPLES + static_cast<int64_t>(mixed & 0xFFFFFF) % (P / SAMPLES + 1)) % P;
    different += std::memcmp(w + (d * w_DP.stride(0) + p * w_DP.stride(1)) * size,
                             rows + (p * rows_PD.stride(0) + d * rows_PD.stride(1)) * size, size) != 0;
  }
  return different == 0;
}

}  // namespace

TORCH_LIBRARY_IMPL(monet, CPU, m) {
  m.impl("count_active", count_active);
  m.impl("is_transposed", is_transposed);
  m.impl("active_linear", active_linear);
  m.impl("active_mix", active_mix);
  m.impl("active_sum", active_sum);
}
