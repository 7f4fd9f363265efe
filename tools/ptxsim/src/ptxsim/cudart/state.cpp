// Buffers and errors of the simulated runtime.
#include "state.h"

#include <cstdio>

namespace ptxsim_cudart {

std::vector<std::string>& ptx_images() {
  static auto* v = new std::vector<std::string>;
  return *v;
}
std::map<const void*, Function>& functions() {
  static auto* m = new std::map<const void*, Function>;
  return *m;
}
std::map<const void*, Variable>& variables() {
  static auto* m = new std::map<const void*, Variable>;
  return *m;
}
std::map<u64, Buffer>& buffers() {
  static auto* m = new std::map<u64, Buffer>;
  return *m;
}
// Addresses that place() gives out. Those of module variables, from memory.py, lie before.
constexpr u64 VARIABLE_ADDRESS = 0x100000000000, FIRST_ADDRESS = 0x200000000000, LAST_ADDRESS = 0x500000000000;
constexpr u64 RED_ZONE = 1 << 26;  // bytes between buffers

static u64 g_next_address = FIRST_ADDRESS;

cudaError_t set_error(cudaError_t c, const std::string& detail) {
  if (c != cudaSuccess) {
    t_last_error = c;
    t_detail = detail;
  }
  return c;
}
cudaError_t fail(cudaError_t c, const std::string& text) {
  if (g_hooks.error) g_hooks.error(c, text.c_str());
  return set_error(c, text);
}
std::string hex(u64 x) {
  char b[32];
  snprintf(b, sizeof b, "0x%llx", (unsigned long long)x);
  return b;
}

const Buffer* find_buffer(u64 p) {
  auto it = buffers().upper_bound(p);
  if (it == buffers().begin()) return nullptr;
  --it;
  return p <= it->second.a.base + it->second.a.size ? &it->second : nullptr;
}
bool is_device_address(const void* p) { return (u64)p >= VARIABLE_ADDRESS && (u64)p < LAST_ADDRESS; }
u64 place(const void* host, u64 size, u64 flags, int scope) {
  if (g_next_address + size + RED_ZONE > LAST_ADDRESS) g_next_address = FIRST_ADDRESS;
  u64 base = g_next_address + ((u64)host & 63);
  g_next_address = (base + size + RED_ZONE + 0xffff) & ~0xffffull;
  buffers()[base] = {{base, size, (uint8_t*)host, flags}, scope};
  return base;
}
uint8_t* host_memory(const char* who, const void* p, size_t n, bool write) {
  const Buffer* b = find_buffer((u64)p);
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
  if (write && (b->a.flags & SimAllocation::READ_ONLY)) {
    fail(cudaErrorInvalidValue, std::string(who) + " writes to a read-only buffer");
    return nullptr;
  }
  return b->a.host + off;
}

}  // namespace ptxsim_cudart
