// printf and assert of device code.
#pragma once
#include <cstring>
#include <string>

#include "isa/floats.h"
#include "memory/spaces.h"

namespace ptxsim {

inline std::string string_at(Warp& warp, u64 a) {
  std::string s;
  const Allocation* A = find_allocation(warp.block->launch, a);
  if (!A) return s;
  for (u64 k = a - A->base; k < A->size && A->host[k]; k++) s += (char)A->host[k];
  return s;
}
inline void op_printf(Warp& warp, const Instruction& in) {
  if (!warp.block->launch->print) return;
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) {
      std::string f = string_at(warp, warp.lanes<u64>(in.src0)[l]);
      u64 ap = warp.lanes<u64>(in.src1)[l] - LOCAL_WINDOW;
      const u8* base = warp.local + (u64)l * warp.local_size;
      u64 off = ap;
      std::string o;
      for (size_t k = 0; k < f.size(); k++) {
        if (f[k] != '%') {
          o += f[k];
          continue;
        }
        if (f[k + 1] == '%') {
          o += '%';
          k++;
          continue;
        }
        std::string sp = "%";
        k++;
        int lng = 0;
        while (k < f.size() && !strchr("diouxXcsfFeEgGaAp", f[k])) {
          if (f[k] == 'l')
            lng++;
          else if (f[k] == 'h' || f[k] == 'z') {
            if (f[k] == 'z') lng = 2;
          } else
            sp += f[k];
          k++;
        }
        if (k >= f.size()) break;
        char c = f[k];
        int n = (strchr("fFeEgGaAps", c) || lng) ? 8 : 4;
        off = (off + n - 1) & ~(u64)(n - 1);
        if (off + n > warp.local_size) break;
        u64 v = 0;
        memcpy(&v, base + off, n);
        off += n;
        char b[128];
        if (strchr("fFeEgGaA", c)) {
          sp += c;
          snprintf(b, sizeof b, sp.c_str(), double_of_bits(v));
          o += b;
        } else if (c == 's')
          o += string_at(warp, v);
        else if (c == 'p') {
          snprintf(b, sizeof b, "0x%llx", ull(v));
          o += b;
        } else if (c == 'c')
          o += (char)v;
        else {
          sp += "ll";
          sp += c;
          if (n == 4 && (c == 'd' || c == 'i')) v = (u64)(i64)(i32)v;
          snprintf(b, sizeof b, sp.c_str(), (long long)v);
          o += b;
        }
      }
      warp.worker->output += o;
    }
}
inline void op_assert(Warp& warp, const Instruction& in) {
  int l = __builtin_ctz(warp.mask);
  fail(warp, Kind::TRAP, in.pc, l, 0, "device assert failed: %s (%s:%u)",
       string_at(warp, warp.lanes<u64>(in.src0)[l]).c_str(), string_at(warp, warp.lanes<u64>(in.src1)[l]).c_str(),
       warp.lanes<u32>(in.src2)[l]);
}

}  // namespace ptxsim
