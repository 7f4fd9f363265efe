// The state of the simulated runtime: what extensions registered, buffers, the last error.
#pragma once
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "abi.h"

namespace ptxsim_cudart {

struct Function {
  std::string name;
  int module, max_dynamic = -1;  // bytes of dynamic shared memory that the host opted in to, or -1
};
struct Variable {
  std::string name;
  int module;
};
struct Buffer {
  SimAllocation a;
  int scope;  // 0: until freed or forgotten
};

// These are never destroyed: extensions call the runtime while the process ends.
std::vector<std::string>& ptx_images();
std::map<const void*, Function>& functions();  // by host stub
std::map<const void*, Variable>& variables();  // by host address
std::map<u64, Buffer>& buffers();              // by device address

inline std::recursive_mutex g_lock;
using Lock = std::lock_guard<std::recursive_mutex>;
inline SimHooks g_hooks;
inline SimDevice g_device = {8, 0, 108, 2048, 32, 65536, 164 << 10, 163 << 10, 40 << 20};
inline thread_local cudaError_t t_last_error = cudaSuccess;
inline thread_local std::string t_detail;       // of the last error
inline thread_local std::vector<int> t_scopes;  // open scopes of this thread

cudaError_t set_error(cudaError_t code, const std::string& detail = "");
// An error that is a bug of the host code: Python gets it as well.
cudaError_t fail(cudaError_t code, const std::string& text);
std::string hex(u64 x);

// Device addresses that are made up lie where no host address does.
bool is_device_address(const void* p);
// The buffer at or just before a device address, or null.
const Buffer* find_buffer(u64 address);
// Makes up a device address for host memory.
u64 place(const void* host, u64 size, u64 flags, int scope);
// Host memory behind [p, p + n) of the device. Null and an error if it is not all in one buffer.
uint8_t* host_memory(const char* caller, const void* p, size_t n, bool write);

}  // namespace ptxsim_cudart
