// Types of PTX instructions.
#pragma once
#include <string>

#include "abi.h"

namespace ptxsim {

using u128 = unsigned __int128;
using i128 = __int128;
inline unsigned long long ull(u64 x) { return x; }  // for printf

enum class Type : u8 {
  NONE,
  U8,
  S8,
  B8,
  U16,
  S16,
  B16,
  U32,
  S32,
  B32,
  U64,
  S64,
  B64,
  F16,
  BF16,
  F32,
  F64,
  F16X2,
  BF16X2,
  TF32,
  PRED,
  B128,
  E4M3X2,
  E5M2X2,
  E4M3,
  E5M2,
  U16X2,
  S16X2,
};
inline constexpr const char* TYPE_NAMES[] = {"",     "u8",     "s8",     "b8",    "u16",    "s16",   "b16",
                                             "u32",  "s32",    "b32",    "u64",   "s64",    "b64",   "f16",
                                             "bf16", "f32",    "f64",    "f16x2", "bf16x2", "tf32",  "pred",
                                             "b128", "e4m3x2", "e5m2x2", "e4m3",  "e5m2",   "u16x2", "s16x2"};

// The type with this name, or NONE.
inline Type type_named(const std::string& name) {
  for (size_t k = 1; k < std::size(TYPE_NAMES); k++)
    if (name == TYPE_NAMES[k]) return Type(k);
  return Type::NONE;
}
inline int size_of(Type t) {
  switch (t) {
    case Type::U8:
    case Type::S8:
    case Type::B8:
    case Type::E4M3:
    case Type::E5M2:
      return 1;
    case Type::U16:
    case Type::S16:
    case Type::B16:
    case Type::F16:
    case Type::BF16:
    case Type::E4M3X2:
    case Type::E5M2X2:
      return 2;
    case Type::U64:
    case Type::S64:
    case Type::B64:
    case Type::F64:
      return 8;
    case Type::B128:
      return 16;
    default:
      return 4;
  }
}
inline bool is_float(Type t) {
  return t == Type::F16 || t == Type::BF16 || t == Type::F32 || t == Type::F64 || t == Type::TF32;
}
inline bool is_half(Type t) { return t == Type::F16 || t == Type::BF16 || t == Type::F16X2 || t == Type::BF16X2; }
inline bool is_signed(Type t) { return t == Type::S8 || t == Type::S16 || t == Type::S32 || t == Type::S64; }

}  // namespace ptxsim
