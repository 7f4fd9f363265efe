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
// Formats like printf, with arguments of a thread's local memory from `offset` on.
inline std::string format_arguments(Warp& warp, const std::string& format, const u8* local, u64 offset) {
  std::string text;
  for (size_t k = 0; k < format.size(); k++) {
    if (format[k] != '%') {
      text += format[k];
      continue;
    }
    k++;
    if (k < format.size() && format[k] == '%') {
      text += '%';
      continue;
    }
    std::string spec = "%";
    bool is_long = false;
    for (; k < format.size() && !strchr("diouxXcsfFeEgGaAp", format[k]); k++) {
      if (format[k] == 'l' || format[k] == 'z')
        is_long = true;
      else if (format[k] != 'h')
        spec += format[k];
    }
    if (k >= format.size()) break;
    char conversion = format[k];
    u64 size = strchr("fFeEgGaAps", conversion) || is_long ? 8 : 4, value = 0;
    offset = (offset + size - 1) & ~(size - 1);
    if (offset + size > warp.local_size) break;
    memcpy(&value, local + offset, size);
    offset += size;
    char formatted[128] = "";
    if (strchr("fFeEgGaA", conversion))
      snprintf(formatted, sizeof formatted, (spec + conversion).c_str(), double_of_bits(value));
    else if (conversion == 'p')
      snprintf(formatted, sizeof formatted, "0x%llx", ull(value));
    else if (conversion == 's' || conversion == 'c')
      text += conversion == 's' ? string_at(warp, value) : std::string(1, char(value));
    else {
      if (size == 4 && (conversion == 'd' || conversion == 'i')) value = u64(i64(i32(value)));
      snprintf(formatted, sizeof formatted, (spec + "ll" + conversion).c_str(), (long long)value);
    }
    text += formatted;
  }
  return text;
}
inline void op_printf(Warp& warp, const Instruction& in) {  // format, address of the arguments
  if (!warp.block->launch->print) return;
  for (int l = 0; l < 32; l++)
    if (warp.mask >> l & 1) {
      std::string format = string_at(warp, warp.lanes<u64>(in.src0)[l]);
      u64 arguments = warp.lanes<u64>(in.src1)[l] - LOCAL_WINDOW;
      warp.worker->output += format_arguments(warp, format, warp.local + u64(l) * warp.local_size, arguments);
    }
}
inline void op_assert(Warp& warp, const Instruction& in) {
  int l = __builtin_ctz(warp.mask);
  fail(warp, Kind::TRAP, in.pc, l, 0, "device assert failed: %s (%s:%u)",
       string_at(warp, warp.lanes<u64>(in.src0)[l]).c_str(), string_at(warp, warp.lanes<u64>(in.src1)[l]).c_str(),
       warp.lanes<u32>(in.src2)[l]);
}

}  // namespace ptxsim
