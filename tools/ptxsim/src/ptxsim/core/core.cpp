// ptxsim core: runs a decoded PTX kernel on the CPU, warp by warp.
//
// * Every register is an array over the 32 lanes of a warp. Predicates are 32-bit masks.
// * Divergence: a warp is a set of (pc, lane mask) groups. The runnable group with the lowest pc runs, and groups that
//   meet at one pc merge (min-PC reconvergence).
// * Warp-synchronous instructions wait until all live lanes named by their mask are present.
// * Warps of a block run one after another until they block at a barrier or use up a quantum.
// All addresses are made up, and every access is checked against allocations.
//
// The core is one translation unit, so that handlers and checks can be inlined. This file is its C interface for
// core.py.
#include <cstdio>

#include "decode/decode.h"
#include "engine/launch.h"

using namespace ptxsim;

extern "C" {

// The layout of the structs of abi.h, one "name offset size" a line.
const char* ptxsim_layout() {
  static const std::string text = layout_text(LAYOUT);
  return text.c_str();
}

// Returns a program, to be freed by ptxsim_free. Writes "pc<tab>reason" lines of unsupported instructions.
void* ptxsim_decode(const char* opcodes, const char* special_registers, int num_instructions, const i32* opcode,
                    const i32* guard, const i32* first_operand, const i64* operands, int num_registers,
                    const u8* register_width, int num_predicates, char* unsupported, int unsupported_capacity) {
  std::unique_ptr<Program> program = decode({opcodes, special_registers, num_instructions, opcode, guard, first_operand,
                                             operands, num_registers, register_width, num_predicates});
  std::string lines;
  for (int pc = 0; pc < num_instructions; pc++)
    if (!program->unsupported[pc].empty()) lines += std::to_string(pc) + "\t" + program->unsupported[pc] + "\n";
  snprintf(unsupported, unsupported_capacity, "%s", lines.c_str());
  return program.release();
}
void ptxsim_free(void* program) { delete static_cast<Program*>(program); }

// Returns 0, or 1 if a finding ended the launch (LaunchConfig::error).
int ptxsim_run(void* program, LaunchConfig* config) {
  Launch(*static_cast<Program*>(program), *config).run();
  return config->failed;
}

}  // extern "C"
