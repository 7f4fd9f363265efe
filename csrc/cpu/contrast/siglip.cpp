// The sigmoid loss of all pairs (Zhai et al., 2023). Nothing is normalised, so one sweep gives loss and all gradients.
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>

#include "common/library.h"
#include "common/pair_losses.h"
#include "cpu/contrast/schedule.h"
#include "cpu/contrast/sigmoid.h"

namespace maskco {
namespace {

// The losses [N], and gradients for query, keys, scale and bias [1]. They are gradients of the sum of all losses times
// `factor`, or of their sum weighted by `upstream` [N].
using SigLipResult = SigLipSum;

template <class T>
SigLipResult compute_in(const SigLipCall& call, const std::optional<Tensor>& upstream, double factor_, Needed need) {
  const auto kernels = sweep_kernels<T, SigmoidPairs<T>>(call.query.scalar_type());
  const PairFeatures<T> f(call.query, call.keys, kernels.panel, kernels.depth);
  const T scale = scalar_value<T>(call.scale);
  const bool weigh = need.any();
  std::vector<T> loss(f.padded), bias_gradient(need.bias ? f.padded : 0), along(need.scale ? f.padded : 0);
  std::vector<T> factor(weigh ? f.padded : 0, scale * static_cast<T>(factor_));
  if (weigh && upstream) {
    const Tensor up = as_contiguous<T>(*upstream);
    for (int64_t i = 0; i < f.n; i++) factor[i] = scale * data<const T>(up)[i];
  }
  SigmoidPairs<T> policy{};
  policy.has_own = call.own.has_value();
  policy.own = call.own.value_or(0);
  policy.bias = scalar_value<T>(call.bias) * T(kLog2E);
  policy.factor = factor.data();
  policy.loss = loss.data();
  policy.bias_gradient = need.bias ? bias_gradient.data() : nullptr;
  policy.along = need.scale ? along.data() : nullptr;
  const ScalarType dtype = upstream ? call.query.scalar_type() : gradient_type(call.query);
  GradientSum<T> grad_query(need.query, f, f.n, dtype), grad_keys(need.keys, f, f.k, dtype);
  const Tensor no_logits = logits_to_keep(f, kernels.panel, 0);
  if (weigh)
    weigh_pairs(f, kernels, scale * T(kLog2E), policy, no_logits, grad_query, grad_keys);
  else
    read_pairs(f, kernels, scale * T(kLog2E), policy, no_logits);
  const Tensor out = torch::stable::new_empty(call.query, {f.n}, scalar_type_of<T>);
  std::copy_n(loss.data(), f.n, data<T>(out));
  const Tensor grad_bias = torch::stable::new_empty(call.query, {need.bias ? 1 : 0}, scalar_type_of<T>);
  if (need.bias)  // (the weights contain the scale)
    *data<T>(grad_bias) = static_cast<T>(total_of(bias_gradient) / double(scale));
  const Tensor grad_scale = scale_gradient(call.query, total_of(along), scale, call.scale.number, need.scale);
  return {out, grad_query.result(), grad_keys.result(), grad_scale, grad_bias};
}

SigLipResult compute(const SigLipCall& call, const std::optional<Tensor>& upstream, double factor, Needed need) {
  return accumulation_type(call.query) == ScalarType::Double ? compute_in<double>(call, upstream, factor, need)
                                                             : compute_in<float>(call, upstream, factor, need);
}

struct CpuSigLip {
  static Tensor forward(const SigLipCall& call) { return std::get<0>(compute(call, std::nullopt, 1, {})); }
  static SigLipGradients backward(const SigLipCall& call, const Tensor& grad_loss, Needed need) {
    const auto [loss, grad_query, grad_keys, grad_scale, grad_bias] = compute(call, grad_loss, 1, need);
    return {grad_query, grad_keys, grad_scale, grad_bias};
  }
  static SigLipSum sum(const SigLipCall& call, double factor, Needed need) {
    SigLipSum result = compute(call, std::nullopt, factor, need);
    const Tensor rows = std::get<0>(result);
    std::get<0>(result) =
        rows.scalar_type() == ScalarType::Double ? sum_of<double>(rows, factor) : sum_of<float>(rows, factor);
    return result;
  }
};

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, CPU, m) {
  m.impl("siglip_loss_fwd", TORCH_BOX(&maskco::siglip_loss_fwd<maskco::CpuSigLip>));
  m.impl("siglip_loss_bwd", TORCH_BOX(&maskco::siglip_loss_bwd<maskco::CpuSigLip>));
  m.impl("siglip_loss_sum", TORCH_BOX(&maskco::siglip_loss_sum<maskco::CpuSigLip>));
}
