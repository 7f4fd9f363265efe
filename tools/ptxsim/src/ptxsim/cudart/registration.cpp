// What the code calls that nvcc generates: registration of fat binaries, kernels and variables.
#include <cstring>

#include "state.h"

using namespace ptxsim_cudart;

// Of the launch that follows, between <<<...>>> and the call of the stub.
static thread_local struct Config {
  dim3 grid, block;
  size_t shared;
  void* stream;
} t_config;

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
  Lock lock(g_lock);
  struct Wrapper {
    int magic, version;
    const uint8_t* data;
  }* w = (Wrapper*)wrapper;
  std::string ptx;
  const uint8_t* p = w->data;
  unsigned magic;
  uint16_t header_size;
  u64 total;
  unsigned best = 0;
  memcpy(&magic, p, 4);
  memcpy(&header_size, p + 6, 2);
  memcpy(&total, p + 8, 8);
  if (magic == 0xBA55ED50)
    for (const uint8_t *e = p + header_size, *end = e + total; e < end;) {  // entries: kind 1 is PTX
      uint16_t kind;
      unsigned entry_header, arch;
      u64 size;
      memcpy(&kind, e, 2);
      memcpy(&entry_header, e + 4, 4);
      memcpy(&size, e + 8, 8);
      memcpy(&arch, e + 28, 4);
      std::string text((const char*)e + entry_header, size);
      text = text.c_str();
      if (kind == 1 && arch >= best) {
        best = arch;
        ptx = text.find(".version") == std::string::npos ? "compressed" : text;
      }
      e += entry_header + size;
    }
  ptx_images().push_back(ptx);
  return (void**)(new int((int)ptx_images().size() - 1));
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void** h, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  Lock lock(g_lock);
  functions()[host] = Function{name, *(int*)h};
}
void __cudaRegisterVar(void** h, char* host, char*, const char* name, int, size_t, int, int) {
  Lock lock(g_lock);
  variables()[host] = Variable{name, *(int*)h};
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

}  // extern "C"
