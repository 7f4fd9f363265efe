// The schemas of all ops. They are written nowhere else. maskco/ops/*.py documents the public arguments.
//
// <op>_fwd and <op>_bwd compute. Autograd, fake kernels and argument checks are in Python. Further arguments and
// results:
// - `need_grad` asks info_nce_fwd for grad_query, the gradient of each query's own loss. The same pass computes it.
//   Otherwise it is [0, C].
// - `normaliser` [2, N] is each softmax's largest logit, in the device's own unit, and the sum of e^(logit - largest).
//   As one number, their log-sum-exp would be rounded too coarsely for e^x.
// - `local_share` [N, M] is the softmax of the local negatives.
// - `aligned` says whether the rows of all shared features of the forward pass start at 16-byte boundaries. Then both
//   passes choose the same kernels and round logits alike. CUDA only.
// - `allow_tf32` lets float32 products round their factors: to TF32 on tensor cores, to two bfloat16 with AMX.
#include "common/library.h"

MASKCO_LIBRARY(MASKCO_NAMESPACE, m) {
  m.def(
      "info_nce_fwd(Tensor query, Tensor positive, Tensor? queue, Tensor? local_negatives, bool in_batch, "
      "Tensor? query_ids, Tensor? queue_ids, Tensor? valid, float temperature, Tensor? temperature_tensor, "
      "bool need_grad, bool allow_tf32, bool decoupled=False, float? margin=None) -> (Tensor loss, Tensor lse, Tensor "
      "positive_logit, Tensor rank, Tensor "
      "grad_query, Tensor normaliser, Tensor local_share)");
  // The gradient of keys [K, C] that all queries share: the queue, or with `in_batch` the positives, where own ones are
  // left out.
  m.def(
      "info_nce_bwd_keys(Tensor grad_loss, Tensor normaliser, Tensor query, Tensor keys, bool in_batch, "
      "Tensor? query_ids, Tensor? key_ids, Tensor? valid, float temperature, Tensor? temperature_tensor, bool aligned, "
      "bool allow_tf32, float? margin=None, Tensor? positive_logit=None) -> Tensor grad_keys");

  // `scale` is the scale. With `scale_tensor` it is the power of that tensor: 1, or -1 for a temperature.

  // Cross-entropies of query i and key i + own among all pairs, over rows and with `columns` over columns. `parts` [2,
  // N] has both. `row_sums` and `column_sums` are like `normaliser`. `totals` has sums and numbers of logits, for label
  // smoothing. The backward pass gets the logits of the first `kept` queries: all, or a multiple of 128.
  m.def(
      "clip_loss_fwd(Tensor query, Tensor keys, int own, Tensor? query_ids, Tensor? key_ids, float scale, Tensor? "
      "scale_tensor, bool columns, float smoothing, bool decoupled, float? margin, SymInt kept, bool allow_tf32=False) "
      "-> (Tensor loss, Tensor parts, Tensor own_logit, Tensor row_rank, Tensor column_rank, Tensor row_sums, Tensor "
      "column_sums, Tensor row_totals, Tensor column_totals, Tensor logits)");
  m.def(
      "clip_loss_bwd(Tensor row_upstream, Tensor column_upstream, Tensor query, Tensor keys, int own, Tensor? "
      "query_ids, Tensor? key_ids, float scale, Tensor? scale_tensor, bool columns, float smoothing, bool decoupled, "
      "float? margin, Tensor parts, Tensor own_logit, Tensor column_own, Tensor row_sums, Tensor column_sums, Tensor "
      "row_totals, Tensor column_totals, Tensor logits, bool need_query, bool need_keys, bool need_scale, bool "
      "allow_tf32=False) -> (Tensor grad_query, Tensor grad_keys, Tensor grad_scale)");

  // `sums` [2, N rounded up] is like `normaliser`. Key i + own is query i itself. With `symmetric`, keys and queries
  // are the same, and grad_query is the gradient of both roles.
  m.def(
      "supcon_loss_fwd(Tensor query, Tensor keys, Tensor query_labels, Tensor key_labels, int? own, float scale, "
      "Tensor? scale_tensor, bool symmetric, SymInt kept, bool allow_tf32=False) -> (Tensor loss, Tensor lse, Tensor "
      "positive_logit, Tensor positives, Tensor sums, Tensor logits)");
  m.def(
      "supcon_loss_bwd(Tensor grad_loss, Tensor query, Tensor keys, Tensor query_labels, Tensor key_labels, int? own, "
      "float scale, Tensor? scale_tensor, Tensor positives, Tensor sums, Tensor logits, bool symmetric, bool "
      "need_query, bool need_keys, bool need_scale, bool allow_tf32=False) -> (Tensor grad_query, Tensor grad_keys, "
      "Tensor grad_scale)");
  // <op>_fwd gives each query's loss. <op>_sum gives the sum of all losses times `factor`, and the gradients that are
  // needed. For float16 features these are float32, since they are not multiplied by the upstream gradient yet.
  m.def(
      "siglip_loss_fwd(Tensor query, Tensor keys, int? own, float scale, Tensor? scale_tensor, float bias, Tensor? "
      "bias_tensor, bool allow_tf32=False) -> Tensor loss");
  m.def(
      "siglip_loss_bwd(Tensor grad_loss, Tensor query, Tensor keys, int? own, float scale, Tensor? scale_tensor, float "
      "bias, Tensor? bias_tensor, bool need_query, bool need_keys, bool need_scale, bool need_bias, bool "
      "allow_tf32=False) -> (Tensor grad_query, Tensor grad_keys, Tensor grad_scale, Tensor grad_bias)");
  m.def(
      "siglip_loss_sum(Tensor query, Tensor keys, int? own, float scale, Tensor? scale_tensor, float bias, Tensor? "
      "bias_tensor, float factor, bool need_query, bool need_keys, bool need_scale, bool need_bias, bool "
      "allow_tf32=False) -> (Tensor loss, Tensor grad_query, Tensor grad_keys, Tensor grad_scale, Tensor grad_bias)");

  m.def(
      "clip_loss_sum(Tensor query, Tensor keys, Tensor? ids, float scale, Tensor? scale_tensor, bool columns, float "
      "smoothing, bool decoupled, float? margin, float factor, bool need_query, bool need_keys, bool need_scale, "
      "SymInt kept, bool stats, bool allow_tf32=False) -> (Tensor loss, Tensor grad_query, Tensor grad_keys, Tensor "
      "grad_scale, Tensor statistics, Tensor ranks)");
  m.def(
      "supcon_loss_sum(Tensor query, Tensor keys, Tensor query_labels, Tensor key_labels, int? own, float scale, "
      "Tensor? scale_tensor, bool symmetric, float factor, bool need_query, bool need_keys, bool need_scale, SymInt "
      "kept, bool allow_tf32=False) -> (Tensor loss, Tensor grad_query, Tensor grad_keys, Tensor grad_scale, Tensor "
      "lse, Tensor positive_logit, Tensor positives)");

  m.def(
      "box_pool_fwd(Tensor features, Tensor boxes, float spatial_scale, int output_height, int output_width, "
      "int sampling_ratio, bool aligned) -> Tensor");
  m.def(
      "box_pool_bwd(Tensor grad_output, Tensor boxes, SymInt[] feature_size, bool channels_last, float spatial_scale, "
      "int output_height, int output_width, int sampling_ratio, bool aligned) -> Tensor");

  // masks [B, R, H, W] (float or bool) or, with num_regions, labels [B, H, W]. area [B, R] is kept for backward.
  m.def(
      "masked_pool_fwd(Tensor features, Tensor masks, SymInt? num_regions, bool mean) -> (Tensor output, Tensor area)");
  m.def(
      "masked_pool_bwd(Tensor grad_output, Tensor masks, Tensor area, SymInt[] feature_size, bool channels_last, "
      "bool mean) -> Tensor grad_features");
  m.def(
      "masked_pool_bwd_masks(Tensor grad_output, Tensor features, Tensor output, Tensor area, bool mean) -> Tensor "
      "grad_masks");

  m.def(
      "queue_push_(Tensor(a!) queue, Tensor(b!) cursor, Tensor keys, bool normalize, Tensor? ids, "
      "Tensor(c!)? queue_ids, bool wrap) -> ()");
}
