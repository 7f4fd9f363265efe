// InfoNCE on CUDA: chooses between the flash kernels (flash.cu) and the general path (general.cu).
#include "common/library.h"
#include "cuda/info_nce/paths.h"

namespace maskco {
namespace {

InfoNCEResults forward(const InfoNCEForwardCall& call) {
  check_on_device(call.query, call.query, "query");
  DeviceGuard guard(call.query);
  const bool flash = (call.queue || call.in_batch) && !call.decoupled && !call.margin &&
                     flash_takes(call.query, &call.positive, call.queue ? &call.queue->rows : nullptr);
  return flash ? flash_forward(call) : general_forward(call);
}

Tensor backward_keys(const InfoNCEKeysCall& call) {
  check_on_device(call.query, call.query, "query");
  DeviceGuard guard(call.query);
  const bool flash = call.aligned && !call.margin && flash_takes(call.query, nullptr, &call.keys.rows);
  return flash ? flash_backward_keys(call) : general_backward_keys(call);
}

}  // namespace
}  // namespace maskco

MASKCO_LIBRARY_IMPL(MASKCO_NAMESPACE, MASKCO_CUDA_KEY, m) {
  m.impl("info_nce_fwd", MASKCO_CUDA_BOX(&maskco::info_nce_fwd<&maskco::forward>));
  m.impl("info_nce_bwd_keys", MASKCO_CUDA_BOX(&maskco::info_nce_bwd_keys<&maskco::backward_keys>));
}
