// Entry points for runtime.py, and for ptxsim_host.h in extensions.
#include <signal.h>
#include <unistd.h>

#include <cstring>

#include "errors.h"
#include "state.h"

using namespace ptxsim_cudart;

// Host code that follows a device address crashes. This says so first.
static struct sigaction g_segv;
static void segv(int, siginfo_t* i, void*) {
  static const char msg[] = "\nptxsim: the host code follows a device address\n";
  if (is_device_address(i->si_addr) && write(2, msg, sizeof msg - 1)) {
  }
  sigaction(SIGSEGV, &g_segv, nullptr);  // and fault again
}

static int g_scopes = 0;  // scopes that were ever opened

extern "C" {

// The layout of the structs of abi.h, one "name offset size" a line.
const char* ptxsim_cudart_layout() {
  static const std::string text = ptxsim::layout_text(LAYOUT);
  return text.c_str();
}
void ptxsim_hooks(const SimHooks* h) {
  g_hooks = *h;
  struct sigaction a = {};
  a.sa_sigaction = segv;
  a.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &a, &g_segv);
}
void ptxsim_device(const SimDevice* d) { g_device = *d; }
int ptxsim_modules() {
  Lock lock(g_lock);
  return (int)ptx_images().size();
}
const char* ptxsim_ptx(int m) {
  Lock lock(g_lock);
  return ptx_images()[m].c_str();
}
void ptxsim_detail(const char* text) { t_detail = text; }
int ptxsim_error_code(const char* name) {
  for (auto& e : ERRORS)
    if (!strcmp(e.name, name)) return e.code;
  return cudaErrorUnknown;
}
u64 ptxsim_allocs(SimAllocation* out, u64 cap) {
  Lock lock(g_lock);
  u64 n = 0;
  for (auto& b : buffers()) {
    if (n < cap) out[n] = b.second.a;
    n++;
  }
  return n;
}
void ptxsim_map(u64 base, u64 size, void* host, u64 flags) {
  Lock lock(g_lock);
  buffers()[base] = {{base, size, (uint8_t*)host, flags | SimAllocation::MAPPED}, 0};
}
void* ptxsim_register_buffer(const void* host, size_t n, int writable) {
  Lock lock(g_lock);
  if (!n) return nullptr;
  for (auto& b : buffers())
    if (b.second.a.host == host && b.second.a.size == n &&
        !(b.second.a.flags & (SimAllocation::ALLOCATED | SimAllocation::MAPPED))) {
      if (writable) b.second.a.flags &= ~SimAllocation::READ_ONLY;
      return (void*)b.first;
    }
  return (void*)place(host, n, writable ? 0 : SimAllocation::READ_ONLY, t_scopes.empty() ? 0 : t_scopes.back());
}
void ptxsim_forget() {
  Lock lock(g_lock);
  for (auto it = buffers().begin(); it != buffers().end();)
    it = it->second.a.flags & (SimAllocation::ALLOCATED | SimAllocation::MAPPED) ? std::next(it) : buffers().erase(it);
}
void ptxsim_scope_begin() {
  Lock lock(g_lock);
  t_scopes.push_back(++g_scopes);
  t_last_error = cudaSuccess;
}
void ptxsim_scope_end() {
  Lock lock(g_lock);
  int s = t_scopes.back();
  t_scopes.pop_back();
  for (auto it = buffers().begin(); it != buffers().end();)
    it = it->second.scope == s ? buffers().erase(it) : std::next(it);
}
const char* ptxsim_unchecked() {
  if (t_last_error == cudaSuccess) return nullptr;
  auto c = t_last_error;
  t_last_error = cudaSuccess;
  return cudaGetErrorString(c);
}

}  // extern "C"
