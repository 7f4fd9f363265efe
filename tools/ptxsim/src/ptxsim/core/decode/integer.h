// Rows of the decode table: integer arithmetic, bits, logic.
#pragma once
#include "decode/table.h"
#include "isa/integers.h"

namespace ptxsim {

template <class T>
struct WideOf;
template <>
struct WideOf<u16> : std::type_identity<u32> {};
template <>
struct WideOf<i16> : std::type_identity<i32> {};
template <>
struct WideOf<u32> : std::type_identity<u64> {};
template <>
struct WideOf<i32> : std::type_identity<i64> {};
template <>
struct WideOf<u64> : std::type_identity<u128> {};
template <>
struct WideOf<i64> : std::type_identity<i128> {};
template <class T>
using Wide = typename WideOf<T>::type;

// Calls f<C++ type>(".type") for types of PTX.
template <class F>
void for_signed_and_unsigned(F f) {
  f.template operator()<u16>(".u16");
  f.template operator()<i16>(".s16");
  f.template operator()<u32>(".u32");
  f.template operator()<i32>(".s32");
  f.template operator()<u64>(".u64");
  f.template operator()<i64>(".s64");
}
template <class F>
void for_bits(F f) {
  f.template operator()<u16>(".b16");
  f.template operator()<u32>(".b32");
  f.template operator()<u64>(".b64");
}
template <class F>
void for_integers(F f) {
  for_signed_and_unsigned(f);
  for_bits(f);
}

inline void add_integer_arithmetic(Table& t) {
  using std::string;
  using namespace slots;
  for (const char* name : {"add.cc", "sub.cc", "mad.cc", "addc", "subc", "madc"}) {
    bool multiplies = name[0] == 'm', subtracts = name[0] == 's', uses = name[3] == 'c';
    auto modifiers = [=](Decoder& d) {
      u8 product = !multiplies ? CarrySpec::NONE : d.has("hi") ? CarrySpec::HIGH : CarrySpec::LOW;
      d.in.carry = {product, subtracts, uses, d.has("cc")};
      d.in.is_signed = is_signed(d.last_type());
      if (size_of(d.last_type()) == 8) d.in.handler = &op_cc<u64>;
    };
    std::vector<Slot> operands = {dst(), src0(), src1()};
    if (multiplies) operands.push_back(src2());
    t.add(name, &op_cc<u32>, operands, modifiers);
  }
  t.binary<i32, i32, i32>("add.sat.s32",
                          [](i32 a, i32 b) { return std::max<i64>(INT32_MIN, std::min<i64>(INT32_MAX, i64(a) + b)); });
  t.binary<i32, i32, i32>("sub.sat.s32",
                          [](i32 a, i32 b) { return std::max<i64>(INT32_MIN, std::min<i64>(INT32_MAX, i64(a) - b)); });
  t.binary<i32, i32, i32>("min.relu.s32", [](i32 a, i32 b) { return std::max(0, std::min(a, b)); });
  t.binary<i32, i32, i32>("max.relu.s32", [](i32 a, i32 b) { return std::max(0, std::max(a, b)); });

  t.binary<u32, u16, u16>("mul.wide.u16", [](u16 a, u16 b) { return u32(a) * b; });
  t.binary<i32, i16, i16>("mul.wide.s16", [](i16 a, i16 b) { return i32(a) * b; });
  t.binary<u64, u32, u32>("mul.wide.u32", [](u32 a, u32 b) { return u64(a) * b; });
  t.binary<i64, i32, i32>("mul.wide.s32", [](i32 a, i32 b) { return i64(a) * b; });
  t.reject("mul.wide", "mul.wide");
  t.ternary<u32, u16, u16, u32>("mad.wide.u16", [](u16 a, u16 b, u32 c) { return u32(a) * b + c; });
  t.ternary<i32, i16, i16, i32>("mad.wide.s16", [](i16 a, i16 b, i32 c) { return i32(a) * b + c; });
  t.ternary<u64, u32, u32, u64>("mad.wide.u32", [](u32 a, u32 b, u64 c) { return u64(a) * b + c; });
  t.ternary<i64, i32, i32, i64>("mad.wide.s32", [](i32 a, i32 b, i64 c) { return i64(a) * b + c; });
  t.reject("mad.wide", "mad.wide");
  t.reject("mad.sat.s32", "mad.hi.sat");

  for_integers([&]<class T>(const string& type) {
    using W = Wide<T>;
    constexpr int BITS = 8 * sizeof(T);
    t.binary<T, T, T>("add" + type, [](T a, T b) { return a + b; });
    t.binary<T, T, T>("sub" + type, [](T a, T b) { return a - b; });
    t.binary<T, T, T>("min" + type, [](T a, T b) { return a < b ? a : b; });
    t.binary<T, T, T>("max" + type, [](T a, T b) { return a > b ? a : b; });
    t.binary<T, T, T>("div" + type, [](T a, T b) { return divide<T>(a, b); });
    t.binary<T, T, T>("rem" + type, [](T a, T b) { return remainder<T>(a, b); });
    t.unary<T, T>("neg" + type, [](T a) { return 0 - a; });
    t.unary<T, T>("abs" + type, [](T a) { return a < 0 ? 0 - a : a; });
    t.binary<T, T, T>("mul.hi" + type, [](T a, T b) { return (W(a) * W(b)) >> BITS; });
    t.binary<T, T, T>("mul" + type, [](T a, T b) { return W(a) * W(b); });
    t.ternary<T, T, T, T>("mad.hi" + type, [](T a, T b, T c) { return T((W(a) * W(b)) >> BITS) + c; });
    t.ternary<T, T, T, T>("mad" + type, [](T a, T b, T c) { return T(W(a) * W(b)) + c; });
    t.ternary<T, T, T, T>("sad" + type, [](T a, T b, T c) { return c + (a < b ? b - a : a - b); });
    t.binary<T, T, u32>("shr" + type, [](T a, u32 b) { return T(b >= BITS ? (a < 0 ? -1 : 0) : a >> b); });
  });
  t.add("dp4a", &op_dp4a, {dst(4), src0(4), src1(4), src2(4)},
        [](Decoder& d) { d.in.signs = {d.type(0) == Type::S32, d.type(1) == Type::S32}; });
}

inline void add_24_bit_products(Table& t) {
  // S24, U24: the low 24 bits
  struct Cut {
    static i64 s(u32 x) { return i64(i32(x << 8)) >> 8; }
    static u64 u(u32 x) { return u64(x) & 0xffffff; }
  };
  t.binary<i32, i32, i32>("mul24.hi.s32", [](i32 a, i32 b) { return (Cut::s(a) * Cut::s(b)) >> 16; });
  t.binary<i32, i32, i32>("mul24.s32", [](i32 a, i32 b) { return Cut::s(a) * Cut::s(b); });
  t.binary<u32, u32, u32>("mul24.hi", [](u32 a, u32 b) { return (Cut::u(a) * Cut::u(b)) >> 16; });
  t.binary<u32, u32, u32>("mul24", [](u32 a, u32 b) { return Cut::u(a) * Cut::u(b); });
  t.ternary<i32, i32, i32, i32>("mad24.hi.s32",
                                [](i32 a, i32 b, i32 c) { return ((Cut::s(a) * Cut::s(b)) >> 16) + c; });
  t.ternary<i32, i32, i32, i32>("mad24.s32", [](i32 a, i32 b, i32 c) { return Cut::s(a) * Cut::s(b) + c; });
  t.ternary<u32, u32, u32, u32>("mad24.hi", [](u32 a, u32 b, u32 c) { return ((Cut::u(a) * Cut::u(b)) >> 16) + c; });
  t.ternary<u32, u32, u32, u32>("mad24", [](u32 a, u32 b, u32 c) { return Cut::u(a) * Cut::u(b) + c; });
}

// Applies f to the low and the high 16 bits.
template <class T, class F>
u32 on_halves(u32 a, u32 b, F f) {
  u32 r = 0;
  for (int k = 0; k < 2; k++) r |= u32(u16(f(T(a >> (16 * k)), T(b >> (16 * k))))) << (16 * k);
  return r;
}
inline void add_packed_arithmetic(Table& t) {
  for (const char* pattern : {"add.u16x2", "add.s16x2"})
    t.binary<u32, u32, u32>(pattern,
                            [](u32 a, u32 b) { return on_halves<u16>(a, b, [](u16 x, u16 y) { return x + y; }); });
  auto add = [&]<class T>(const std::string& type) {
    t.binary<u32, u32, u32>("min" + type,
                            [](u32 a, u32 b) { return on_halves<T>(a, b, [](T x, T y) { return x < y ? x : y; }); });
    t.binary<u32, u32, u32>("max" + type,
                            [](u32 a, u32 b) { return on_halves<T>(a, b, [](T x, T y) { return x > y ? x : y; }); });
  };
  add.template operator()<u16>(".u16x2");
  add.template operator()<i16>(".s16x2");
}

inline void add_bit_operations(Table& t) {
  using namespace slots;
  for_bits([&]<class T>(const std::string& type) {
    t.binary<T, T, T>("and" + type, [](T a, T b) { return a & b; });
    t.binary<T, T, T>("or" + type, [](T a, T b) { return a | b; });
    t.binary<T, T, T>("xor" + type, [](T a, T b) { return a ^ b; });
    t.unary<T, T>("not" + type, [](T a) { return ~a; });
    t.unary<T, T>("cnot" + type, [](T a) { return a == 0; });
    t.binary<T, T, u32>("shl" + type, [](T a, u32 b) { return T(b >= 8 * sizeof(T) ? 0 : a << b); });
  });
  t.ternary<u32, u32, u32, u32>("shf.l.wrap",
                                [](u32 a, u32 b, u32 c) { return u32(((u64(b) << 32 | a) << (c & 31)) >> 32); });
  t.ternary<u32, u32, u32, u32>("shf.l",
                                [](u32 a, u32 b, u32 c) { return c >= 32 ? a : u32(((u64(b) << 32 | a) << c) >> 32); });
  t.ternary<u32, u32, u32, u32>("shf.wrap", [](u32 a, u32 b, u32 c) { return u32((u64(b) << 32 | a) >> (c & 31)); });
  t.ternary<u32, u32, u32, u32>("shf", [](u32 a, u32 b, u32 c) { return c >= 32 ? b : u32((u64(b) << 32 | a) >> c); });
  t.unary<u64, u64>("brev.b64", [](u64 a) {
    u64 r = 0;
    for (int k = 0; k < 64; k++) r |= (a >> k & 1) << (63 - k);
    return r;
  });
  t.unary<u32, u32>("brev", [](u32 a) {
    u32 r = 0;
    for (int k = 0; k < 32; k++) r |= (a >> k & 1) << (31 - k);
    return r;
  });
  t.unary<u32, u64>("popc.b64", [](u64 a) { return __builtin_popcountll(a); });
  t.unary<u32, u32>("popc", [](u32 a) { return __builtin_popcount(a); });
  t.unary<u32, u64>("clz.b64", [](u64 a) { return a ? __builtin_clzll(a) : 64; });
  t.unary<u32, u32>("clz", [](u32 a) { return a ? __builtin_clz(a) : 32; });
  // bfind: the highest bit that differs from the sign, or the shift that brings it to the top
  t.unary<u32, u32>("bfind.shiftamt.u32", [](u32 a) { return a ? __builtin_clz(a) : ~0u; });
  t.unary<u32, u32>("bfind.u32", [](u32 a) { return a ? 31 - __builtin_clz(a) : ~0u; });
  t.unary<u32, i32>("bfind.shiftamt.s32", [](i32 a) {
    u32 x = a < 0 ? ~a : a;
    return x ? __builtin_clz(x) : ~0u;
  });
  t.unary<u32, i32>("bfind.s32", [](i32 a) {
    u32 x = a < 0 ? ~a : a;
    return x ? 31 - __builtin_clz(x) : ~0u;
  });
  t.unary<u32, u64>("bfind.shiftamt.u64", [](u64 a) { return a ? __builtin_clzll(a) : ~0u; });
  t.unary<u32, u64>("bfind.u64", [](u64 a) { return a ? 63 - __builtin_clzll(a) : ~0u; });
  t.unary<u32, i64>("bfind.shiftamt.s64", [](i64 a) {
    u64 x = a < 0 ? ~a : a;
    return x ? __builtin_clzll(x) : ~0u;
  });
  t.unary<u32, i64>("bfind.s64", [](i64 a) {
    u64 x = a < 0 ? ~a : a;
    return x ? 63 - __builtin_clzll(x) : ~0u;
  });
  t.ternary<u32, u32, u32, u32>("bfe.u32", [](u32 a, u32 b, u32 c) { return bfe<u32>(a, b, c); });
  t.ternary<i32, i32, u32, u32>("bfe.s32", [](i32 a, u32 b, u32 c) { return bfe<i32>(a, b, c); });
  t.ternary<u64, u64, u32, u32>("bfe.u64", [](u64 a, u32 b, u32 c) { return bfe<u64>(a, b, c); });
  t.ternary<i64, i64, u32, u32>("bfe.s64", [](i64 a, u32 b, u32 c) { return bfe<i64>(a, b, c); });
  t.add("bfi.b64", &op_bfi<u64>, {dst(8), src0(8), src1(8), src2(4), src3(4)});
  t.add("bfi.b32", &op_bfi<u32>, {dst(4), src0(4), src1(4), src2(4), src3(4)});
  t.binary<i32, i32, u32>("szext.wrap.s32",
                          [](i32 a, u32 b) { return (b & 31) ? (a << (32 - (b & 31))) >> (32 - (b & 31)) : 0; });
  t.binary<i32, i32, u32>("szext.s32", [](i32 a, u32 b) { return b >= 32 ? a : b ? (a << (32 - b)) >> (32 - b) : 0; });
  t.binary<u32, u32, u32>("szext.wrap",
                          [](u32 a, u32 b) { return (b & 31) ? (a << (32 - (b & 31))) >> (32 - (b & 31)) : 0; });
  t.binary<u32, u32, u32>("szext", [](u32 a, u32 b) { return b >= 32 ? a : b ? (a << (32 - b)) >> (32 - b) : 0; });
  t.binary<u32, u32, u32>("bmsk.wrap", [](u32 a, u32 b) { return u32(((u64(1) << (b & 31)) - 1) << (a & 31)); });
  t.binary<u32, u32, u32>("bmsk",
                          [](u32 a, u32 b) { return a >= 32 ? 0 : u32(((u64(1) << std::min(b, 32u)) - 1) << a); });
  t.add("prmt", &op_prmt, {dst(4), src0(4), src1(4), src2(4)}, [](Decoder& d) {
    d.in.operation =
        d.choose<u8>({{"f4e", 1}, {"b4e", 2}, {"rc8", 3}, {"ecl", 4}, {"ecr", 5}, {"rc16", 6}}, PRMT_SELECTORS);
  });
  t.add("lop3", &op_lop3, {dst_pred(4), src0(4), src1(4), src2(4)}, [](Decoder& d) {
    d.in.immediate = d.operand(4).value;
    if (d.operand(0).kind != OperandKind::PAIR) return;
    d.in.operation = d.has("or") ? BoolOp::OR : BoolOp::AND;
    d.in.pred_c = d.pred(5);
  });
}

}  // namespace ptxsim
