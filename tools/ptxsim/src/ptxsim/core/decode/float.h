// Rows of the decode table: floating-point arithmetic.
#pragma once
#include "decode/table.h"
#include "isa/arithmetic.h"

namespace ptxsim {

// Roundings other than to nearest, and saturation, take the slow path.
inline void add_modified(Table& t, const std::string& name, u8 operation, int num_sources) {
  using namespace slots;
  std::vector<Slot> operands = {dst(), src0()};
  if (num_sources > 1) operands.push_back(src1());
  if (num_sources > 2) operands.push_back(src2());
  auto modifiers = [operation](Decoder& d) {
    d.in.operation = operation;
    d.in.rounding = d.rounding();
    d.in.flush = d.has("ftz");
    d.in.saturate = d.has("sat");
  };
  for (const char* modifier : {".rz", ".rm", ".rp", ".sat"}) {
    t.add(name + modifier + ".f32", &op_farith<float>, operands, modifiers);
    t.add(name + modifier + ".f64", &op_farith<double>, operands, modifiers);
  }
}
// name.ftz.f32, name.f32 and name.f64 of a stateless lambda: flushes its operands and its result.
template <class F>
void add_unary(Table& t, const std::string& name, F) {
  t.unary<float, float>(name + ".ftz.f32", [](float a) { return flush_denormal(F{}(flush_denormal(a))); });
  t.unary<float, float>(name + ".f32", [](float a) { return F{}(a); });
  t.unary<double, double>(name + ".f64", [](double a) { return F{}(a); });
}
template <class F>
void add_binary(Table& t, const std::string& name, F) {
  t.binary<float, float, float>(
      name + ".ftz.f32", [](float a, float b) { return flush_denormal(F{}(flush_denormal(a), flush_denormal(b))); });
  t.binary<float, float, float>(name + ".f32", [](float a, float b) { return F{}(a, b); });
  t.binary<double, double, double>(name + ".f64", [](double a, double b) { return F{}(a, b); });
}
inline void add_float_arithmetic(Table& t) {
  add_modified(t, "add", FloatOp::ADD, 2);
  add_modified(t, "sub", FloatOp::SUB, 2);
  add_modified(t, "mul", FloatOp::MUL, 2);
  add_modified(t, "fma", FloatOp::FMA, 3);
  add_modified(t, "mad", FloatOp::FMA, 3);
  add_modified(t, "div", FloatOp::DIV, 2);
  add_modified(t, "rcp", FloatOp::RCP, 1);
  add_modified(t, "sqrt", FloatOp::SQRT, 1);
  add_binary(t, "add", []<class T>(T a, T b) -> T { return a + b; });
  add_binary(t, "sub", []<class T>(T a, T b) -> T { return a - b; });
  add_binary(t, "mul", []<class T>(T a, T b) -> T { return a * b; });
  add_binary(t, "div", []<class T>(T a, T b) -> T { return a / b; });
  add_unary(t, "rcp", []<class T>(T a) -> T { return T(1) / a; });
  add_unary(t, "sqrt", []<class T>(T a) -> T { return std::sqrt(a); });
  for (const std::string name : {"fma", "mad"}) {
    t.ternary<float, float, float, float>(name + ".ftz.f32", [](float a, float b, float c) {
      return flush_denormal(std::fma(flush_denormal(a), flush_denormal(b), flush_denormal(c)));
    });
    t.ternary<float, float, float, float>(name + ".f32", [](float a, float b, float c) { return std::fma(a, b, c); });
    t.ternary<double, double, double, double>(name + ".f64",
                                              [](double a, double b, double c) { return std::fma(a, b, c); });
  }
  t.unary<float, float>("rsqrt.ftz.f32", [](float a) { return 1.0 / std::sqrt(double(flush_denormal(a))); });
  t.unary<float, float>("rsqrt.f32", [](float a) { return 1.0 / std::sqrt(double(a)); });
  t.unary<double, double>("rsqrt.f64", [](double a) { return 1.0 / std::sqrt(a); });
  t.unary<float, float>("ex2.ftz.f32", [](float a) { return flush_denormal(exp2f(flush_denormal(a))); });
  t.unary<float, float>("ex2.f32", [](float a) { return exp2f(a); });
  t.unary<float, float>("lg2.ftz.f32", [](float a) { return flush_denormal(log2f(flush_denormal(a))); });
  t.unary<float, float>("lg2.f32", [](float a) { return log2f(a); });
  t.unary<float, float>("sin.f32", [](float a) { return sinf(a); });
  t.unary<float, float>("cos.f32", [](float a) { return cosf(a); });
  t.unary<float, float>("tanh.f32", [](float a) { return tanhf(a); });
  t.unary<float, float>("neg.ftz.f32", [](float a) { return -flush_denormal(a); });
  t.unary<u32, u32>("neg.f32", [](u32 a) { return a ^ 0x80000000u; });
  t.unary<u64, u64>("neg.f64", [](u64 a) { return a ^ 0x8000000000000000ull; });
  t.unary<float, float>("abs.ftz.f32", [](float a) { return std::fabs(flush_denormal(a)); });
  t.unary<u32, u32>("abs.f32", [](u32 a) { return a & 0x7fffffffu; });
  t.unary<u64, u64>("abs.f64", [](u64 a) { return a & 0x7fffffffffffffffull; });
  t.binary<u32, u32, u32>("copysign.f32", [](u32 a, u32 b) { return (b & 0x7fffffffu) | (a & 0x80000000u); });
  t.binary<u64, u64, u64>("copysign.f64",
                          [](u64 a, u64 b) { return (b & 0x7fffffffffffffffull) | (a & 0x8000000000000000ull); });
}

inline void add_float_min_max(Table& t) {
  using namespace slots;
  for (const std::string name : {"min", "max"}) {
    auto modifiers = [maximum = name == "max"](Decoder& d) {
      if (d.operands.size() > 3) Decoder::reject("three-operand min/max");
      d.in.minmax = {maximum, d.has("NaN"), d.has("xorsign")};
      d.in.flush = d.has("ftz");
    };
    std::vector<Slot> operands = {dst(), src0(), src1()};
    for (const char* modifier : {".ftz", ".NaN", ".xorsign"})
      t.add(name + modifier + ".f32", &op_fminmax, operands, modifiers);
    Handler plain = name == "max" ? &op_minmax<float, true> : &op_minmax<float, false>;
    t.add(name + ".f32", plain, operands, modifiers);
    Handler wide = name == "max" ? &op_minmax<double, true> : &op_minmax<double, false>;
    t.add(name + ".f64", wide, operands);
    auto half = [&]<class H, int N>(const char* type) {
      t.add(name + type, &op_hminmax<H, N>, operands,
            [maximum = name == "max"](Decoder& d) { d.in.minmax = {maximum, d.has("NaN"), false}; });
    };
    half.template operator()<Half, 1>(".f16");
    half.template operator()<BFloat, 1>(".bf16");
    half.template operator()<Half, 2>(".f16x2");
    half.template operator()<BFloat, 2>(".bf16x2");
  }
}

template <class H, int N>
void add_half_arithmetic(Table& t, const std::string& type) {
  using namespace slots;
  auto add = [&](const char* name, u8 operation, int num_sources) {
    std::vector<Slot> operands = {dst(), src0(), src1()};
    if (num_sources > 2) operands.push_back(src2());
    t.add(name + type, &op_harith<H, N>, operands, [operation](Decoder& d) {
      d.in.operation = operation;
      d.in.saturate = d.has("sat") ? 1 : d.has("relu") ? 2 : 0;
    });
  };
  add("add", FloatOp::ADD, 2);
  add("sub", FloatOp::SUB, 2);
  add("mul", FloatOp::MUL, 2);
  add("fma", FloatOp::FMA, 3);
  add("mad", FloatOp::FMA, 3);
  auto unary = [&](const char* name, u8 operation) {
    t.add(name + type, &op_hunary<H, N>, {dst(), src0()}, [operation](Decoder& d) { d.in.operation = operation; });
  };
  unary("neg", HalfOp::NEG);
  unary("abs", HalfOp::ABS);
  unary("ex2", HalfOp::EX2);
  unary("tanh", HalfOp::TANH);
}
inline void add_half_arithmetic(Table& t) {
  add_half_arithmetic<Half, 1>(t, ".f16");
  add_half_arithmetic<BFloat, 1>(t, ".bf16");
  add_half_arithmetic<Half, 2>(t, ".f16x2");
  add_half_arithmetic<BFloat, 2>(t, ".bf16x2");
}

inline void add_float_tests(Table& t) {
  using namespace slots;
  t.add("testp", &op_testp, {pred_dst, src0()}, [](Decoder& d) {
    d.in.size = size_of(d.last_type());
    d.in.operation = d.choose<u8>({{"finite", TestOp::FINITE},
                                   {"infinite", TestOp::INFINITE},
                                   {"number", TestOp::NUMBER},
                                   {"notanumber", TestOp::NOTANUMBER},
                                   {"normal", TestOp::NORMAL}},
                                  TestOp::SUBNORMAL);
  });
}

}  // namespace ptxsim
