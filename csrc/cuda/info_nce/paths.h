// InfoNCE by the flash kernels, for info_nce.cu, which takes the general path for all else. Arguments are checked.
#pragma once
#include <optional>

#include "common/info_nce.h"
#include "cuda/common/host.h"

namespace maskco {

// Whether the flash kernels can read these features: all [.., C] like `query`; `keys` or null.
bool flash_takes(const Tensor& query, const Tensor* positive, const Tensor* keys);

InfoNCEForward flash_forward(const Tensor& query, const Tensor& positive, const std::optional<Tensor>& queue,
                             const std::optional<Tensor>& local_negatives, bool in_batch,
                             const std::optional<Tensor>& query_ids, const std::optional<Tensor>& queue_ids,
                             const std::optional<Tensor>& valid, double temperature,
                             const std::optional<Tensor>& temperature_tensor, bool need_grad, bool allow_tf32);

Tensor flash_backward_keys(const Tensor& grad_loss, const Tensor& normaliser, const Tensor& query, const Tensor& keys,
                           bool in_batch, const std::optional<Tensor>& query_ids, const std::optional<Tensor>& key_ids,
                           const std::optional<Tensor>& valid, double temperature,
                           const std::optional<Tensor>& temperature_tensor, bool allow_tf32);

}  // namespace maskco
