// The two paths of InfoNCE on CUDA, and what their host sides share. info_nce.cu chooses one. Arguments are then
// checked already, and the device is set.
#pragma once
#include "common/info_nce.h"
#include "cuda/common/host.h"
#include "cuda/info_nce/rows.cuh"

namespace maskco {

// flash.cu: tensor cores, for some dtypes and C. Says whether its kernels can read these features. All are [.., C] like
// `query`, and `positive` and `keys` may be null.
bool flash_takes(const Tensor& query, const Tensor* positive, const Tensor* keys);
InfoNCEResults flash_forward(const InfoNCEForwardCall& call);
Tensor flash_backward_keys(const InfoNCEKeysCall& call);

// general.cu: all other calls
InfoNCEResults general_forward(const InfoNCEForwardCall& call);
Tensor general_backward_keys(const InfoNCEKeysCall& call);

template <class Acc>
Temperature<Acc> temperature_of(const InfoNCECall& call) {
  return {call.temperature, optional_ptr<Acc>(call.temperature_tensor)};
}
template <class T>
LocalNegatives<T> local_negatives_of(const InfoNCEForwardCall& call) {
  if (call.num_local() == 0) return {nullptr, 0, 0, 0, 0};
  const Tensor& local = *call.local_negatives;
  return {device_ptr<const T>(local), local.size(1), local.stride(0), local.stride(1), local.stride(2)};
}
template <class Acc>
Results<Acc> kernel_results(const InfoNCEResults& r, bool need_grad) {
  return {device_ptr<Acc>(r.loss),
          device_ptr<Acc>(r.lse),
          device_ptr<Acc>(r.positive_logit),
          device_ptr<int64_t>(r.rank),
          need_grad ? device_ptr<Acc>(r.grad_query) : nullptr,
          device_ptr<Acc>(r.normaliser),
          device_ptr<Acc>(r.local_share)};
}

}  // namespace maskco
