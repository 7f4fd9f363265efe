// Tells Python the layout of the structs that both sides share. abi.py compares it with its own.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace ptxsim {

struct Layout {  // of a struct, or of one of its fields
  const char* name;
  uint64_t offset, size;
};

// One "name offset size" a line.
template <size_t N>
std::string layout_text(const Layout (&parts)[N]) {
  std::string lines;
  for (const Layout& part : parts)
    lines += std::string(part.name) + " " + std::to_string(part.offset) + " " + std::to_string(part.size) + "\n";
  return lines;
}

}  // namespace ptxsim

#define PTXSIM_STRUCT(S) {#S, 0, sizeof(S)}
#define PTXSIM_FIELD(S, F) {#S "." #F, offsetof(S, F), sizeof(S::F)}
