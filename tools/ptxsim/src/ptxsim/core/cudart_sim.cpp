// A CUDA runtime without a device: the subset of the API that host code of kernels uses. A launch goes to Python
// (runtime.py), which runs the kernel's PTX in the simulator on host memory. Everything is done at once and in order:
// streams and events do nothing. The PTX comes out of the fat binaries that the extension registers (compiled with
// code=compute_XX and -no-compress).
#include <cuda_runtime_api.h>
#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

typedef uint64_t u64;

// ---------------------------------------------------------------- interface to runtime.py (mirrored there)
extern "C" {
struct SimLaunch {
  const char* kernel;
  int module;
  unsigned grid[3], block[3], cluster[3];
  int max_dynamic, cooperative;
  u64 shared, stream;
  void** args;
};
struct SimAlloc {
  u64 base, size;
  uint8_t* host;
  u64 flags;
};  // flags: 1 read-only, 2 by cudaMalloc
struct SimDevice {
  int major, minor, sms, threads_sm, blocks_sm, regs_sm, shared_sm, shared_block, l2;
};
struct SimFunc {
  int regs, static_shared, local, constant, max_threads, ptx, active;
};
struct SimHooks {
  int (*launch)(const SimLaunch*);
  int (*func)(int module, const char* kernel, int block, u64 shared, SimFunc* out);
  int (*symbol)(int module, const char* name, u64* addr, u64* size);
  void (*error)(int code, const char* text);  // an API error that host code should never make
};
}

struct Func {
  std::string name;
  int module, max_dynamic = -1;
};
struct Var {
  std::string name;
  int module;
};
struct Buf {
  SimAlloc a;
  int scope;
};  // scope 0: until freed or forgotten
static std::recursive_mutex g_mu;
#define LOCK std::lock_guard<std::recursive_mutex> lock_(g_mu)
static std::vector<std::string>& ptxs() {
  static auto* v = new std::vector<std::string>;
  return *v;
}
static std::map<const void*, Func>& funcs() {
  static auto* m = new std::map<const void*, Func>;
  return *m;
}
static std::map<const void*, Var>& vars() {
  static auto* m = new std::map<const void*, Var>;
  return *m;
}
static std::map<u64, Buf>& bufs() {
  static auto* m = new std::map<u64, Buf>;
  return *m;
}
static const u64 LO = 0x200000000000, HI = 0x500000000000, RED = 1 << 26;  // device addresses handed out here
static u64 g_next = LO, g_handle = 0;
static SimHooks g_hooks;
static SimDevice g_dev = {8, 0, 108, 2048, 32, 65536, 164 << 10, 163 << 10, 40 << 20};
static int g_scopes = 0;
static thread_local std::vector<int> t_scopes;
static thread_local cudaError_t t_last = cudaSuccess;
static thread_local std::string t_detail, t_text;
static thread_local struct Config {
  dim3 grid, block;
  size_t shared;
  void* stream;
} t_config;

struct Err {
  cudaError_t code;
  const char *name, *text;
};
#define E(c, t) {c, #c, t}
static const Err ERRS[] = {
    E(cudaSuccess, "no error"),
    E(cudaErrorInvalidValue, "invalid argument"),
    E(cudaErrorMemoryAllocation, "out of memory"),
    E(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    E(cudaErrorInvalidSymbol, "invalid device symbol"),
    E(cudaErrorInvalidDevice, "invalid device ordinal"),
    E(cudaErrorInvalidDeviceFunction, "invalid device function"),
    E(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device"),
    E(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    E(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    E(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    E(cudaErrorMisalignedAddress, "misaligned address"),
    E(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    E(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    E(cudaErrorAssert, "device-side assert triggered"),
    E(cudaErrorLaunchFailure, "unspecified launch failure"),
    E(cudaErrorCooperativeLaunchTooLarge, "too many blocks in cooperative launch"),
    E(cudaErrorNotSupported, "operation not supported"),
    E(cudaErrorInvalidClusterSize, "Invalid cluster size"),
    E(cudaErrorUnknown, "unknown error")};
static const Err& err(cudaError_t c) {
  for (auto& e : ERRS)
    if (e.code == c) return e;
  return ERRS[sizeof ERRS / sizeof *ERRS - 1];
}

static cudaError_t set(cudaError_t c, const std::string& detail = "") {
  if (c != cudaSuccess) {
    t_last = c;
    t_detail = detail;
  }
  return c;
}
// an error that is a bug of the host code: told to Python as well
static cudaError_t fail(cudaError_t c, const std::string& text) {
  if (g_hooks.error) g_hooks.error(c, text.c_str());
  return set(c, text);
}
static std::string hex(u64 x) {
  char b[32];
  snprintf(b, sizeof b, "0x%llx", (unsigned long long)x);
  return b;
}

// ---------------------------------------------------------------- memory
static const Buf* find(u64 p) {
  auto it = bufs().upper_bound(p);
  if (it == bufs().begin()) return nullptr;
  --it;
  return p <= it->second.a.base + it->second.a.size ? &it->second : nullptr;
}
static bool madeUp(const void* p) { return (u64)p >= 0x100000000000 && (u64)p < HI; }  // no host address lies here
static u64 place(const void* host, u64 size, u64 flags, int scope) {
  if (g_next + size + RED > HI) g_next = LO;
  u64 base = g_next + ((u64)host & 63);
  g_next = (base + size + RED + 0xffff) & ~0xffffull;
  bufs()[base] = {{base, size, (uint8_t*)host, flags}, scope};
  return base;
}
// host memory behind [p, p + n) of the device; null and an error if it isn't all one buffer
static uint8_t* behind(const char* who, const void* p, size_t n, bool write) {
  const Buf* b = find((u64)p);
  if (!b) {
    fail(cudaErrorInvalidValue,
         std::string(who) + ": " + hex((u64)p) + " is not a device address (tensor memory needs device_ptr)");
    return nullptr;
  }
  u64 off = (u64)p - b->a.base;
  if (off + n > b->a.size) {
    fail(cudaErrorInvalidValue, std::string(who) + ": " + std::to_string(n) + " bytes at offset " +
                                    std::to_string(off) + " of a " + std::to_string(b->a.size) + "-byte buffer");
    return nullptr;
  }
  if (write && (b->a.flags & 1)) {
    fail(cudaErrorInvalidValue, std::string(who) + " writes to a read-only buffer");
    return nullptr;
  }
  return b->a.host + off;
}
static cudaError_t copyTo(const char* who, void* dst, const void* src, size_t n, cudaMemcpyKind k) {
  LOCK;
  if (!n) return cudaSuccess;
  bool d = k == cudaMemcpyHostToDevice || k == cudaMemcpyDeviceToDevice || (k == cudaMemcpyDefault && madeUp(dst));
  bool s = k == cudaMemcpyDeviceToHost || k == cudaMemcpyDeviceToDevice || (k == cudaMemcpyDefault && madeUp(src));
  if ((!d && madeUp(dst)) || (!s && madeUp(src)))
    return fail(cudaErrorInvalidValue, std::string(who) + ": a device address where the copy kind says host");
  if (d && !(dst = behind(who, dst, n, true))) return t_last;
  if (s && !(src = behind(who, src, n, false))) return t_last;
  memmove(dst, src, n);
  return cudaSuccess;
}

// host code that follows a device address crashes; say so first
static struct sigaction g_segv;
static void segv(int, siginfo_t* i, void*) {
  static const char msg[] = "\nptxsim: the host code follows a device address\n";
  if (madeUp(i->si_addr) && write(2, msg, sizeof msg - 1)) {
  }
  sigaction(SIGSEGV, &g_segv, nullptr);  // and fault again
}

extern "C" {
// ---------------------------------------------------------------- for runtime.py and ptxsim_host.h
void ptxsim_hooks(const SimHooks* h) {
  g_hooks = *h;
  struct sigaction a = {};
  a.sa_sigaction = segv;
  a.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &a, &g_segv);
}
void ptxsim_device(const SimDevice* d) { g_dev = *d; }
int ptxsim_modules() {
  LOCK;
  return (int)ptxs().size();
}
const char* ptxsim_ptx(int m) {
  LOCK;
  return ptxs()[m].c_str();
}
void ptxsim_detail(const char* text) { t_detail = text; }
int ptxsim_error_code(const char* name) {
  for (auto& e : ERRS)
    if (!strcmp(e.name, name)) return e.code;
  return cudaErrorUnknown;
}
u64 ptxsim_allocs(SimAlloc* out, u64 cap) {
  LOCK;
  u64 n = 0;
  for (auto& b : bufs()) {
    if (n < cap) out[n] = b.second.a;
    n++;
  }
  return n;
}
void ptxsim_map(u64 base, u64 size, void* host, u64 flags) {
  LOCK;
  bufs()[base] = {{base, size, (uint8_t*)host, flags | 4}, 0};
}
void* ptxsim_register_buffer(const void* host, size_t n, int writable) {
  LOCK;
  if (!n) return nullptr;
  for (auto& b : bufs())
    if (b.second.a.host == host && b.second.a.size == n && !(b.second.a.flags & 6)) {
      if (writable) b.second.a.flags &= ~1ull;
      return (void*)b.first;
    }
  return (void*)place(host, n, writable ? 0 : 1, t_scopes.empty() ? 0 : t_scopes.back());
}
void ptxsim_forget() {
  LOCK;
  for (auto it = bufs().begin(); it != bufs().end();) it = it->second.a.flags & 6 ? std::next(it) : bufs().erase(it);
}
void ptxsim_scope_begin() {
  LOCK;
  t_scopes.push_back(++g_scopes);
  t_last = cudaSuccess;
}
void ptxsim_scope_end() {
  LOCK;
  int s = t_scopes.back();
  t_scopes.pop_back();
  for (auto it = bufs().begin(); it != bufs().end();) it = it->second.scope == s ? bufs().erase(it) : std::next(it);
}
const char* ptxsim_unchecked() {
  if (t_last == cudaSuccess) return nullptr;
  auto c = t_last;
  t_last = cudaSuccess;
  return cudaGetErrorString(c);
}

// ---------------------------------------------------------------- what nvcc's stubs call
void** __cudaRegisterFatBinary(void* wrapper) {
  LOCK;
  struct W {
    int magic, version;
    const uint8_t* data;
  }* w = (W*)wrapper;
  std::string ptx;
  const uint8_t* p = w->data;
  unsigned magic;
  uint16_t hs;
  u64 total;
  unsigned best = 0;
  memcpy(&magic, p, 4);
  memcpy(&hs, p + 6, 2);
  memcpy(&total, p + 8, 8);
  if (magic == 0xBA55ED50)
    for (const uint8_t *e = p + hs, *end = e + total; e < end;) {  // entries: kind 1 is PTX
      uint16_t kind;
      unsigned hdr, arch;
      u64 size, flags;
      memcpy(&kind, e, 2);
      memcpy(&hdr, e + 4, 4);
      memcpy(&size, e + 8, 8);
      memcpy(&arch, e + 28, 4);
      memcpy(&flags, e + 40, 8);
      std::string text((const char*)e + hdr, size);
      text = text.c_str();
      if (kind == 1 && arch >= best) {
        best = arch;
        ptx = text.find(".version") == std::string::npos ? "compressed" : text;
      }
      e += hdr + size;
    }
  ptxs().push_back(ptx);
  return (void**)(new int((int)ptxs().size() - 1));
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void** h, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  LOCK;
  funcs()[host] = Func{name, *(int*)h};
}
void __cudaRegisterVar(void** h, char* host, char*, const char* name, int, size_t, int, int) {
  LOCK;
  vars()[host] = Var{name, *(int*)h};
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  t_config = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = t_config.grid;
  *block = t_config.block;
  *shared = t_config.shared;
  *(void**)stream = t_config.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* k, const void* host) {
  *k = (cudaKernel_t)host;
  return cudaSuccess;
}

// ---------------------------------------------------------------- launches
static cudaError_t launch(const void* f, dim3 g, dim3 b, void** args, size_t shared, cudaStream_t s, int coop,
                          dim3 c = dim3(1, 1, 1)) {
  Func fn;
  {
    LOCK;
    auto it = funcs().find(f);
    if (it == funcs().end())
      return fail(cudaErrorInvalidDeviceFunction, "launch of a function that is no registered kernel");
    fn = it->second;
  }
  if (!g_hooks.launch) return fail(cudaErrorNoKernelImageForDevice, "ptxsim.runtime is not loaded");
  SimLaunch L = {fn.name.c_str(), fn.module, {g.x, g.y, g.z}, {b.x, b.y, b.z}, {c.x, c.y, c.z},
                 fn.max_dynamic,  coop,      shared,          (u64)s,          args};
  int e = g_hooks.launch(&L);
  if (e) t_last = (cudaError_t)e;  // (the hook sets the detail)
  return (cudaError_t)e;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void** args, size_t shared, cudaStream_t s) {
  return launch((const void*)k, g, b, args, shared, s, 0);
}
cudaError_t cudaLaunchKernel(const void* f, dim3 g, dim3 b, void** args, size_t shared, cudaStream_t s) {
  return launch(f, g, b, args, shared, s, 0);
}
cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3 g, dim3 b, void** args, size_t shared, cudaStream_t s) {
  return launch(f, g, b, args, shared, s, 1);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void** args) {
  int coop = 0;
  dim3 cl(1, 1, 1);
  for (unsigned i = 0; i < c->numAttrs; i++) {
    auto& a = c->attrs[i];
    if (a.id == cudaLaunchAttributeCooperative) coop = a.val.cooperative;
    if (a.id == cudaLaunchAttributeClusterDimension)
      cl = dim3(a.val.clusterDim.x, a.val.clusterDim.y, a.val.clusterDim.z);
  }
  return launch(f, c->gridDim, c->blockDim, args, c->dynamicSmemBytes, c->stream, coop, cl);
}
static cudaError_t query(const void* f, int block, size_t shared, SimFunc* out) {
  Func fn;
  {
    LOCK;
    auto it = funcs().find(f);
    if (it == funcs().end()) return set(cudaErrorInvalidDeviceFunction);
    fn = it->second;
  }
  return set(g_hooks.func ? (cudaError_t)g_hooks.func(fn.module, fn.name.c_str(), block, shared, out)
                          : cudaErrorNoKernelImageForDevice);
}
cudaError_t cudaFuncSetAttribute(const void* f, cudaFuncAttribute a, int v) {
  SimFunc q;
  cudaError_t e = query(f, -1, 0, &q);
  if (e) return e;
  if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (v < 0 || v + q.static_shared > g_dev.shared_block)
      return set(cudaErrorInvalidValue, std::to_string(v) + " dynamic + " + std::to_string(q.static_shared) +
                                            " static bytes of shared memory; a block can have " +
                                            std::to_string(g_dev.shared_block));
    LOCK;
    funcs()[f].max_dynamic = v;
  }
  return cudaSuccess;
}
cudaError_t cudaFuncSetCacheConfig(const void*, cudaFuncCache) { return cudaSuccess; }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void* f) {
  SimFunc q;
  cudaError_t e = query(f, 0, 0, &q);
  if (e) return e;
  memset(a, 0, sizeof *a);
  int dyn;
  {
    LOCK;
    dyn = funcs()[f].max_dynamic;
  }
  a->sharedSizeBytes = q.static_shared;
  a->constSizeBytes = q.constant;
  a->localSizeBytes = q.local;
  a->maxThreadsPerBlock = q.max_threads;
  a->numRegs = q.regs;
  a->ptxVersion = q.ptx;
  a->binaryVersion = g_dev.major * 10 + g_dev.minor;
  a->maxDynamicSharedSizeBytes = dyn >= 0 ? dyn : (48 << 10) - q.static_shared;
  a->preferredShmemCarveout = -1;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void* f, int block, size_t shared,
                                                                   unsigned) {
  SimFunc q;
  cudaError_t e = query(f, block, shared, &q);
  if (!e) *n = q.active;
  return e;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void* f, int block, size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, f, block, shared, 0);
}

// ---------------------------------------------------------------- errors, devices
cudaError_t cudaGetLastError() {
  auto e = t_last;
  t_last = cudaSuccess;
  return e;
}
cudaError_t cudaPeekAtLastError() { return t_last; }
const char* cudaGetErrorName(cudaError_t c) { return err(c).name; }
const char* cudaGetErrorString(cudaError_t c) {
  t_text = err(c).text;
  if (c != cudaSuccess && !t_detail.empty()) t_text += " [ptxsim: " + t_detail + "]";
  return t_text.c_str();
}
cudaError_t cudaGetDeviceCount(int* n) {
  *n = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* d) {
  *d = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int d) { return set(d ? cudaErrorInvalidDevice : cudaSuccess); }
cudaError_t cudaDriverGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int d) {
  if (d) return set(cudaErrorInvalidDevice);
  switch ((int)a) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      *v = 1024;
      break;
    case cudaDevAttrMaxBlockDimZ:
      *v = 64;
      break;
    case cudaDevAttrMaxGridDimX:
      *v = 0x7fffffff;
      break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      *v = 65535;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *v = 48 << 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *v = g_dev.shared_block;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *v = g_dev.shared_sm;
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *v = 1024;
      break;
    case cudaDevAttrTotalConstantMemory:
      *v = 64 << 10;
      break;
    case cudaDevAttrWarpSize:
      *v = 32;
      break;
    case cudaDevAttrMaxRegistersPerBlock:
      *v = 65536;
      break;
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *v = g_dev.regs_sm;
      break;
    case cudaDevAttrMultiProcessorCount:
      *v = g_dev.sms;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *v = g_dev.threads_sm;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *v = g_dev.blocks_sm;
      break;
    case cudaDevAttrL2CacheSize:
      *v = g_dev.l2;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *v = g_dev.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *v = g_dev.minor;
      break;
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrMemoryPoolsSupported:
      *v = 1;
      break;
    case cudaDevAttrClockRate:
      *v = 1410000;
      break;
    case cudaDevAttrMemoryClockRate:
      *v = 1215000;
      break;
    case cudaDevAttrGlobalMemoryBusWidth:
      *v = 5120;
      break;
    case cudaDevAttrClusterLaunch:
      *v = g_dev.major >= 9;
      break;
    default:
      *v = 0;
      return fail(cudaErrorNotSupported,
                  "cudaDeviceGetAttribute: attribute " + std::to_string((int)a) + " is not simulated");
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int d) {
  if (d) return set(cudaErrorInvalidDevice);
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "ptxsim sm_%d%d", g_dev.major, g_dev.minor);
  p->major = g_dev.major;
  p->minor = g_dev.minor;
  p->multiProcessorCount = g_dev.sms;
  p->warpSize = 32;
  p->totalGlobalMem = 80ull << 30;
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerBlockOptin = g_dev.shared_block;
  p->sharedMemPerMultiprocessor = g_dev.shared_sm;
  p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = 65536;
  p->regsPerMultiprocessor = g_dev.regs_sm;
  p->totalConstMem = 64 << 10;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = g_dev.threads_sm;
  p->maxBlocksPerMultiProcessor = g_dev.blocks_sm;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->l2CacheSize = g_dev.l2;
  p->memoryBusWidth = 5120;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->unifiedAddressing = p->cooperativeLaunch = 1;
  p->clusterLaunch = g_dev.major >= 9;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return t_last; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* lo, int* hi) {
  *lo = 0;
  *hi = -5;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* f, size_t* t) {
  *t = 80ull << 30;
  *f = 72ull << 30;
  return cudaSuccess;
}

// ---------------------------------------------------------------- memory
cudaError_t cudaMalloc(void** p, size_t n) {
  LOCK;
  if (!n) {
    *p = nullptr;
    return cudaSuccess;
  }
  void* host = nullptr;
  if (posix_memalign(&host, 512, n)) return set(cudaErrorMemoryAllocation);
  memset(host, 0xff, n);
  *p = (void*)place(host, n, 2, 0);
  return cudaSuccess;  // 0xff: NaN, -1
}
cudaError_t cudaFree(void* p) {
  LOCK;
  if (!p) return cudaSuccess;
  auto it = bufs().find((u64)p);
  if (it == bufs().end() || !(it->second.a.flags & 2))
    return fail(cudaErrorInvalidValue, "cudaFree of " + hex((u64)p) + ", which is no allocation (freed twice?)");
  free(it->second.a.host);
  bufs().erase(it);
  return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {  // pinned: one address for host and device
  LOCK;
  if (posix_memalign(p, 4096, n ? n : 1)) return set(cudaErrorMemoryAllocation);
  bufs()[(u64)*p] = {{(u64)*p, n, (uint8_t*)*p, 2}, 0};
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** p, size_t n) { return cudaHostAlloc(p, n, 0); }
cudaError_t cudaMallocManaged(void** p, size_t n, unsigned) { return cudaHostAlloc(p, n, 0); }
cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }
cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind k) { return copyTo("cudaMemcpy", d, s, n, k); }
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind k, cudaStream_t) {
  return copyTo("cudaMemcpyAsync", d, s, n, k);
}
cudaError_t cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, cudaMemcpyKind k,
                              cudaStream_t) {
  for (size_t r = 0; r < h; r++)
    if (cudaError_t e = copyTo("cudaMemcpy2D", (char*)d + r * dp, (const char*)s + r * sp, w, k)) return e;
  return cudaSuccess;
}
cudaError_t cudaMemcpy2D(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, cudaMemcpyKind k) {
  return cudaMemcpy2DAsync(d, dp, s, sp, w, h, k, 0);
}
cudaError_t cudaMemset(void* p, int v, size_t n) {
  LOCK;
  if (!n) return cudaSuccess;
  uint8_t* h = behind("cudaMemset", p, n, true);
  if (!h) return t_last;
  memset(h, v, n);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t) { return cudaMemset(p, v, n); }
static cudaError_t symbol(const void* sym, u64* a, u64* n) {
  Var v;
  {
    LOCK;
    auto it = vars().find(sym);
    if (it == vars().end()) return set(cudaErrorInvalidSymbol);
    v = it->second;
  }
  return set(g_hooks.symbol ? (cudaError_t)g_hooks.symbol(v.module, v.name.c_str(), a, n) : cudaErrorInvalidSymbol);
}
cudaError_t cudaGetSymbolAddress(void** p, const void* sym) {
  u64 a, n;
  cudaError_t e = symbol(sym, &a, &n);
  if (!e) *p = (void*)a;
  return e;
}
cudaError_t cudaGetSymbolSize(size_t* s, const void* sym) {
  u64 a, n;
  cudaError_t e = symbol(sym, &a, &n);
  if (!e) *s = n;
  return e;
}
cudaError_t cudaMemcpyToSymbolAsync(const void* sym, const void* src, size_t n, size_t off, cudaMemcpyKind k,
                                    cudaStream_t) {
  u64 a, size;
  cudaError_t e = symbol(sym, &a, &size);
  if (e) return e;
  LOCK;
  if (off + n > size) return fail(cudaErrorInvalidValue, "cudaMemcpyToSymbol beyond the end of the variable");
  if (k == cudaMemcpyDeviceToDevice && !(src = behind("cudaMemcpyToSymbol", src, n, false))) return t_last;
  memcpy(find(a)->a.host + off, src, n);
  return cudaSuccess;
}
cudaError_t cudaMemcpyToSymbol(const void* sym, const void* src, size_t n, size_t off, cudaMemcpyKind k) {
  return cudaMemcpyToSymbolAsync(sym, src, n, off, k, 0);
}
cudaError_t cudaMemcpyFromSymbolAsync(void* dst, const void* sym, size_t n, size_t off, cudaMemcpyKind k,
                                      cudaStream_t) {
  u64 a, size;
  cudaError_t e = symbol(sym, &a, &size);
  return e ? e : copyTo("cudaMemcpyFromSymbol", dst, (void*)(a + off), n, k);
}
cudaError_t cudaMemcpyFromSymbol(void* dst, const void* sym, size_t n, size_t off, cudaMemcpyKind k) {
  return cudaMemcpyFromSymbolAsync(dst, sym, n, off, k, 0);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  LOCK;
  memset(a, 0, sizeof *a);
  const Buf* b = find((u64)p);
  if (!b) {
    a->device = -2;
    a->hostPointer = (void*)p;
    return cudaSuccess;
  }
  bool host = (u64)b->a.host == b->a.base;
  a->type = host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  a->devicePointer = (void*)p;
  a->hostPointer = host ? (void*)p : nullptr;
  return cudaSuccess;
}

// ---------------------------------------------------------------- streams and events: everything has always finished
static void* handle() {
  LOCK;
  return (void*)(0x1000 + 16 * ++g_handle);
}
cudaError_t cudaStreamCreate(cudaStream_t* s) {
  *s = (cudaStream_t)handle();
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return cudaStreamCreate(s); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) { return cudaStreamCreate(s); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return t_last; }
cudaError_t cudaStreamQuery(cudaStream_t) { return t_last; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* s) {
  *s = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t f, void* data) {
  f(data);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* e) {
  *e = (cudaEvent_t)handle();
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return cudaEventCreate(e); }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return t_last; }
cudaError_t cudaEventQuery(cudaEvent_t) { return t_last; }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
  *ms = 0;
  return cudaSuccess;
}
}
