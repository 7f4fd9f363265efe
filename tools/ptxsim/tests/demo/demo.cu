// A small extension for the tests of the simulated runtime.
#include <cooperative_groups.h>

#include "host.h"
#include "kernels.cuh"

using torch::stable::Tensor;

Tensor softmax(const Tensor& x) {
  STD_TORCH_CHECK(on_device(x) && x.dim() == 2 && x.is_contiguous(),
                  "softmax: a contiguous matrix on the device, please");
  Tensor y = torch::stable::empty_like(x);
  int rows = int(x.size(0)), n = int(x.size(1));
  if (rows == 0) return y;
  softmax_rows<float, 128>
      <<<rows, 128, (n + 4) * sizeof(float), current_stream(x)>>>(device_ptr<const float>(x), device_ptr<float>(y), n);
  check(cudaGetLastError(), "softmax");
  return y;
}

Tensor softmax_backward(const Tensor& g, const Tensor& y) {
  Tensor dx = torch::stable::empty_like(y);
  int rows = int(y.size(0)), n = int(y.size(1));
  softmax_rows_backward<128><<<rows, 128, 0, current_stream(y)>>>(device_ptr<const float>(g),
                                                                  device_ptr<const float>(y), device_ptr<float>(dx), n);
  check(cudaGetLastError(), "softmax_backward");
  return dx;
}

Tensor split_sum(const Tensor& x) {  // as many blocks as fill the device
  int sms = 0, per_sm = 0;
  check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0), "attribute");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, partial_sums, 256, 0), "occupancy");
  int blocks = std::max(1, std::min(ceil_div(x.numel(), 256), sms * per_sm));
  Tensor part = torch::stable::new_empty(x, {blocks}), out = torch::stable::new_empty(x, {});
  auto s = current_stream(x);
  partial_sums<<<blocks, 256, 0, s>>>(device_ptr<const float>(x), device_ptr<float>(part), x.numel());
  check(cudaGetLastError(), "partial_sums");
  final_sum<<<1, 256, 0, s>>>(device_ptr<const float>(part), device_ptr<float>(out), blocks);
  check(cudaGetLastError(), "final_sum");
  return out;
}

Tensor matmul_nt(const Tensor& a, const Tensor& b) {
  int m = int(a.size(0)), n = int(b.size(0)), k = int(a.size(1));
  STD_TORCH_CHECK(b.size(1) == k && a.scalar_type() == torch::headeronly::ScalarType::BFloat16,
                  "matmul_nt: bf16 (m, k), (n, k)");
  Tensor c = torch::stable::new_empty(a, {m, n}, torch::headeronly::ScalarType::Float);
  check(cudaFuncSetAttribute(matmul, cudaFuncAttributeMaxDynamicSharedMemorySize, MATMUL_SHARED), "matmul attribute");
  dim3 grid(ceil_div(n, BN), ceil_div(m, BM));
  matmul<<<grid, 256, MATMUL_SHARED, current_stream(a)>>>(
      device_ptr<const __nv_bfloat16>(a), device_ptr<const __nv_bfloat16>(b), device_ptr<float>(c), m, n, k);
  check(cudaGetLastError(), "matmul");
  return c;
}

Tensor scale(const Tensor& x, double a, double b) {  // a x + b, by cudaLaunchKernelEx
  Tensor y = torch::stable::empty_like(x);
  float fb = float(b);
  check(cudaMemcpyToSymbolAsync(bias, &fb, sizeof fb, 0, cudaMemcpyHostToDevice, current_stream(x)), "bias");
  cudaLaunchAttribute attr[1];
  attr[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attr[0].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t cfg = {};
  cfg.gridDim = dim3(ceil_div(x.numel(), 256)), cfg.blockDim = dim3(256), cfg.stream = current_stream(x),
  cfg.attrs = attr, cfg.numAttrs = 1;
  check(cudaLaunchKernelEx(&cfg, axpb, device_ptr<const float>(x), device_ptr<float>(y), float(a), x.numel()), "axpb");
  return y;
}

__global__ void grid_sum(float* x, int n,
                         int rounds) {  // every element becomes the sum of its neighbours, in step over the grid
  auto grid = cooperative_groups::this_grid();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int r = 0; r < rounds; r++) {
    float v = i < n ? x[(i + 1) % n] + x[(i + n - 1) % n] : 0;
    grid.sync();
    if (i < n) x[i] = v;
    grid.sync();
  }
}
Tensor neighbours(const Tensor& x, int64_t rounds,
                  int64_t block) {  // cooperative launch, on a copy in cudaMalloc'ed memory
  Tensor y = torch::stable::empty_like(x);
  int n = int(x.numel()), r = int(rounds);
  float* tmp = nullptr;
  auto s = current_stream(x);
  check(cudaMallocAsync(&tmp, n * sizeof(float), s), "malloc");
  check(cudaMemcpyAsync(tmp, device_ptr<const float>(x), n * sizeof(float), cudaMemcpyDeviceToDevice, s), "copy");
  void* args[] = {&tmp, &n, &r};
  check(cudaLaunchCooperativeKernel(grid_sum, ceil_div(n, block), dim3(block), args, 0, s), "grid_sum");
  check(cudaMemcpyAsync(device_ptr<float>(y), tmp, n * sizeof(float), cudaMemcpyDeviceToDevice, s), "copy back");
  check(cudaFreeAsync(tmp, s), "free");
  return y;
}

// host code with one mistake each
__global__ void copy_all(const float* x, float* y, int64_t n) {
  int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i < n) y[i] = x[i];
}
Tensor broken(const Tensor& x, std::string bug) {
  auto s = current_stream(x);
  int64_t n = x.numel();
  Tensor y = torch::stable::new_empty(x, {bug == "small buffer" ? n - 1 : n});
  const float* px = device_ptr<const float>(x);
  float* py = device_ptr<float>(y);
  int grid = ceil_div(n, 256), block = 256, shared = 0;
  if (bug == "missing tail") grid = int(n / 256);
  if (bug == "zero grid") grid = 0;
  if (bug == "too many threads") block = 2048;
  if (bug == "raw pointer") py = static_cast<float*>(y.data_ptr());
  if (bug == "copy too long") check(cudaMemcpyAsync(py, px, (n + 1) * 4, cudaMemcpyDeviceToDevice, s), "copy");
  if (bug == "free twice") {
    void* p;
    cudaMalloc(&p, 64), cudaFree(p), check(cudaFree(p), "free");
  }
  if (bug == "pointer swap")
    copy_all<<<grid, block, 0, s>>>(py, const_cast<float*>(px), n);
  else if (bug == "no attribute" || bug == "too much shared" || bug == "launch bounds") {
    shared = bug == "no attribute" ? 50000 : bug == "launch bounds" ? 1024 : 170000;
    if (shared > 100000)
      check(cudaFuncSetAttribute(softmax_rows<float, 64>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
            "attribute");
    softmax_rows<float, 64><<<1, shared == 1024 ? 128 : 64, shared, s>>>(px, py, 64);
  } else if (bug == "count swap")
    partial_sums<<<int(n), 256, 0, s>>>(px, py, grid), final_sum<<<1, 256, 0, s>>>(px, py, int(n) * 2);
  else
    copy_all<<<grid, block, shared, s>>>(px, py, n);
  if (bug != "zero grid") check(cudaGetLastError(), "broken");
  return y;
}

DEMO_LIBRARY(DEMO_NS, m) {
  m.def("softmax(Tensor x) -> Tensor");
  m.def("softmax_backward(Tensor g, Tensor y) -> Tensor");
  m.def("split_sum(Tensor x) -> Tensor");
  m.def("matmul_nt(Tensor a, Tensor b) -> Tensor");
  m.def("scale(Tensor x, float a, float b) -> Tensor");
  m.def("neighbours(Tensor x, int rounds, int block) -> Tensor");
  m.def("broken(Tensor x, str bug) -> Tensor");
}
DEMO_LIBRARY_IMPL(DEMO_NS, DEMO_KEY, m) {
  m.impl("softmax", DEMO_BOX(&softmax));
  m.impl("softmax_backward", DEMO_BOX(&softmax_backward));
  m.impl("split_sum", DEMO_BOX(&split_sum));
  m.impl("matmul_nt", DEMO_BOX(&matmul_nt));
  m.impl("scale", DEMO_BOX(&scale));
  m.impl("neighbours", DEMO_BOX(&neighbours));
  m.impl("broken", DEMO_BOX(&broken));
}
