// Rows of the decode table: cvt.
#pragma once
#include "decode/table.h"
#include "isa/convert.h"

namespace ptxsim {

inline void decode_cvt_pack(Decoder& d) {
  for (const char* part : {"u4", "s4", "u2", "s2"})
    if (d.has(part)) Decoder::reject("cvt.pack to 2/4 bits");
  if (d.types.size() < 2) Decoder::reject("cvt type");
  d.in.convert.dst = d.type(0);
  d.in.convert.src = d.type(1);
}

// float -> i32, saturating, NaN is 0
inline i32 saturated(float rounded) {
  return rounded != rounded         ? 0
         : rounded >= 2147483648.0f ? INT32_MAX
         : rounded < -2147483648.0f ? INT32_MIN
                                    : i32(rounded);
}
template <class D, class A, class F>
Handler conversion(F) {
  return &map1<D, A, F>;
}
template <class D, class A>
Handler conversion() {
  return conversion<D, A>([](A a) { return D(a); });
}

// The handler of a conversion without modifiers between these types and register widths, or null.
struct FastConversion {
  Type dst, src;
  int dst_width, src_width;
  u8 to_integer;
  Handler handler;
};
inline Handler fast_float_conversion(const ConvertSpec& s, int dst_width, int src_width) {
  constexpr u8 ANY = 255;
  static const FastConversion ROWS[] = {
      {Type::F32, Type::BF16, 4, 2, ANY, conversion<float, u16>([](u16 a) { return bfloat_to_float(a); })},
      {Type::F32, Type::F16, 4, 2, ANY, conversion<float, u16>([](u16 a) { return half_to_float(a); })},
      {Type::BF16, Type::F32, 2, 4, ANY, conversion<u16, float>([](float a) { return float_to_bfloat(a); })},
      {Type::F16, Type::F32, 2, 4, ANY, conversion<u16, float>([](float a) { return float_to_half(a); })},
      {Type::F32, Type::S32, 4, 4, ANY, conversion<float, i32>()},
      {Type::F32, Type::U32, 4, 4, ANY, conversion<float, u32>()},
      {Type::F64, Type::F32, 8, 4, ANY, conversion<double, float>()},
      {Type::F32, Type::F64, 4, 8, ANY, conversion<float, double>()},
      {Type::F32, Type::F32, 4, 4, ConvertSpec::ROUND,
       conversion<float, float>([](float a) { return std::nearbyint(a); })},
      {Type::F32, Type::F32, 4, 4, ConvertSpec::TRUNCATE,
       conversion<float, float>([](float a) { return std::trunc(a); })},
      {Type::F32, Type::F32, 4, 4, ConvertSpec::FLOOR, conversion<float, float>([](float a) { return std::floor(a); })},
      {Type::F32, Type::F32, 4, 4, ConvertSpec::CEIL, conversion<float, float>([](float a) { return std::ceil(a); })},
      {Type::S32, Type::F32, 4, 4, ConvertSpec::ROUND,
       conversion<i32, float>([](float a) { return saturated(std::nearbyint(a)); })},
      {Type::S32, Type::F32, 4, 4, ConvertSpec::TRUNCATE, conversion<i32, float>([](float a) { return saturated(a); })},
      {Type::S32, Type::F32, 4, 4, ConvertSpec::FLOOR,
       conversion<i32, float>([](float a) { return saturated(std::floor(a)); })},
      {Type::S32, Type::F32, 4, 4, ConvertSpec::CEIL,
       conversion<i32, float>([](float a) { return saturated(std::ceil(a)); })},
  };
  for (const FastConversion& row : ROWS)
    if (row.dst == s.dst && row.src == s.src && row.dst_width == dst_width && row.src_width == src_width &&
        (row.to_integer == ANY || row.to_integer == s.to_integer))
      return row.handler;
  return nullptr;
}
// Between integers whose destination register is all of the destination type: extends or cuts the value.
inline Handler fast_integer_conversion(Type src, int dst_width, int src_width) {
  bool extends_sign = is_signed(src);
  if (size_of(src) != src_width) return nullptr;
  if (dst_width == 8 && src_width == 4) return extends_sign ? conversion<i64, i32>() : conversion<u64, u32>();
  if (dst_width == 8 && src_width == 2) return extends_sign ? conversion<i64, i16>() : conversion<u64, u16>();
  if (dst_width == 4 && src_width == 2) return extends_sign ? conversion<i32, i16>() : conversion<u32, u16>();
  if (dst_width == 4 && src_width == 8) return conversion<u32, u64>();
  if (dst_width == 2 && src_width == 4) return conversion<u16, u32>();
  return nullptr;
}
inline Handler fast_conversion(const Instruction& in, int dst_width, int src_width) {
  const ConvertSpec& s = in.convert;
  bool exact = !in.saturate && !s.relu && !s.finite && in.rounding == Rounding::NEAREST && !in.flush;
  if (s.dst == Type::TF32 && s.src == Type::F32 && in.rounding == Rounding::AWAY && !s.relu && !s.finite &&
      dst_width == 4 && src_width == 4)
    return conversion<u32, u32>(
        [](u32 a) { return (a & 0x7fffffffu) > 0x7f800000u ? 0x7fffffffu : (a + 0x1000u) & 0xffffe000u; });
  if (!exact) return nullptr;
  if (is_float(s.dst) || is_float(s.src)) return fast_float_conversion(s, dst_width, src_width);
  return size_of(s.dst) == dst_width ? fast_integer_conversion(s.src, dst_width, src_width) : nullptr;
}

inline void decode_cvt(Decoder& d) {
  Instruction& in = d.in;
  Type dst = d.type(0), src = d.type(1);
  if (dst == Type::NONE) Decoder::reject("cvt type");
  if (src == Type::NONE) Decoder::reject("cvt source type");
  in.rounding = d.rounding();
  in.flush = d.has("ftz");
  in.saturate = d.has("sat");
  u8 to_integer = d.choose<u8>({{"rni", ConvertSpec::ROUND},
                                {"rzi", ConvertSpec::TRUNCATE},
                                {"rmi", ConvertSpec::FLOOR},
                                {"rpi", ConvertSpec::CEIL}},
                               ConvertSpec::KEEP);
  in.convert = {dst, src, to_integer, d.has("relu"), d.has("satfinite")};
  bool packed = dst == Type::F16X2 || dst == Type::BF16X2 || dst == Type::E4M3X2 || dst == Type::E5M2X2;
  if (packed && src == Type::F32) {
    in.dst = d.destination(0, size_of(dst));
    in.src0 = d.source(1, 4);
    in.src1 = d.source(2, 4);
    bool plain = in.rounding == Rounding::NEAREST && !in.convert.relu && !in.convert.finite && !in.flush;
    auto to_bfloats = [](float a, float b) { return u32(float_to_bfloat(a)) << 16 | float_to_bfloat(b); };
    auto to_halfs = [](float a, float b) { return u32(float_to_half(a)) << 16 | float_to_half(b); };
    in.handler = plain && dst == Type::BF16X2  ? &map2<u32, float, float, decltype(to_bfloats)>
                 : plain && dst == Type::F16X2 ? &map2<u32, float, float, decltype(to_halfs)>
                                               : &op_cvt2;
    return;
  }
  if (packed) {
    in.handler = &op_cvt_fp8;
    in.dst = d.destination(0, size_of(dst));
    in.src0 = d.source(1, size_of(src));
    return;
  }
  int dst_width = d.width_of(d.operand(0), 4), src_width = d.width_of(d.operand(1), std::max(2, size_of(src)));
  in.dst = d.destination(0, dst_width);
  in.src0 = d.source(1, src_width);
  in.size = dst_width;
  in.reg_width = src_width;
  in.handler = fast_conversion(in, dst_width, src_width);
  if (!in.handler) in.handler = &op_cvt;
}

inline void add_conversions(Table& t) {
  using namespace slots;
  t.add("cvt.pack", &op_cvtpack, {dst(4), src0(4), src1(4), optional(src2(4))}, decode_cvt_pack);
  t.add("cvt", nullptr, {}, decode_cvt);
}

}  // namespace ptxsim
