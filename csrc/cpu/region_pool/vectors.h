// Vector functions for kernels.h: loads and stores that convert, a transposition in registers, and stores that bypass
// the caches. It includes this file once for each instruction set, so there is no include guard.

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int LANES = VECTOR_BYTES / int(sizeof(T));

#define MASKCO_REGION_INLINE static inline __attribute__((always_inline))

// (by reference: a vector as a parameter or result has an ABI that depends on the target)
MASKCO_REGION_INLINE void load(const float* p, Vector<float>& v) { v = *reinterpret_cast<const Vector<float>*>(p); }
MASKCO_REGION_INLINE void load(const double* p, Vector<double>& v) { v = *reinterpret_cast<const Vector<double>*>(p); }
MASKCO_REGION_INLINE void load_bits(const void* p, Vector<uint32_t>& v) {
  typedef uint16_t Half __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));
  v = __builtin_convertvector(*static_cast<const Half*>(p), Vector<uint32_t>);
}
MASKCO_REGION_INLINE void load(const BFloat16* p, Vector<float>& v) {
  Vector<uint32_t> bits;
  load_bits(p, bits);
  v = reinterpret_cast<Vector<float>>(bits << 16);
}
MASKCO_REGION_INLINE void load(const Half* p, Vector<float>& v) {
  Vector<uint32_t> half;
  load_bits(p, half);
  const Vector<uint32_t> sign = (half & 0x8000u) << 16, magnitude = (half & 0x7fffu) << 13;
  const Vector<uint32_t> exponent = magnitude & 0x0f800000u;
  // Normal numbers: the exponent gets the wider bias, Inf and NaN the largest one. Subnormal ones: by a subtraction of
  // floats.
  const Vector<uint32_t> special = (Vector<uint32_t>)(exponent == 0x0f800000u) & (112u << 23);
  const Vector<uint32_t> normal = magnitude + (112u << 23) + special;
  const Vector<uint32_t> one = magnitude + (113u << 23);
  const Vector<float> small = reinterpret_cast<Vector<float>>(one) - 6.103515625e-05f;  // 2^-14
  const Vector<uint32_t> is_small = (Vector<uint32_t>)(exponent == 0u);
  v = reinterpret_cast<Vector<float>>((is_small & reinterpret_cast<Vector<uint32_t>>(small)) | (~is_small & normal) |
                                      sign);
}
template <class T, class S>
MASKCO_REGION_INLINE void store(const Vector<T>& v, S* p, int64_t count = LANES<T>) {
  if constexpr (std::is_same_v<S, T>) {
    if (count >= LANES<T>) {
      *reinterpret_cast<Vector<T>*>(p) = v;
      return;
    }
  }
  T lanes[LANES<T>];
  *reinterpret_cast<Vector<T>*>(lanes) = v;
  if (count >= LANES<T>) {
    for (int64_t l = 0; l < LANES<T>; l++) p[l] = S(lanes[l]);
  } else {
    for (int64_t l = 0; l < count; l++) p[l] = S(lanes[l]);
  }
}

// The even (ODD 0) or odd units of UNIT lanes of a, then of b, in each group of GROUP lanes.
template <int GROUP, int UNIT, int ODD>
constexpr int unit_lane(int lane, int lanes) {
  const int unit = lane % GROUP / UNIT, half = GROUP / UNIT / 2;
  return unit / half * lanes + lane / GROUP * GROUP + (unit % half * 2 + ODD) * UNIT + lane % UNIT;
}
template <int GROUP, int UNIT, int ODD, class T, size_t... I>
MASKCO_REGION_INLINE void take_units(const Vector<T>& a, const Vector<T>& b, Vector<T>& out,
                                     std::index_sequence<I...>) {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12  // such GCC has only its own older builtin
  using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef Index Indices __attribute__((vector_size(sizeof(Vector<T>))));
  out = __builtin_shuffle(a, b, Indices{Index(unit_lane<GROUP, UNIT, ODD>(I, LANES<T>))...});
#else
  out = __builtin_shufflevector(a, b, unit_lane<GROUP, UNIT, ODD>(I, LANES<T>)...);
#endif
}
// Transposes N by N units in each group, for N rows that are STEP apart.
template <int GROUP, int UNIT, int STEP, class T>
MASKCO_REGION_INLINE void transpose_units(Vector<T>* rows) {
  constexpr int N = GROUP / UNIT;
  constexpr auto lanes = std::make_index_sequence<LANES<T>>();
  for (int round = 1; round < N; round *= 2) {
    Vector<T> next[N];
    for (int i = 0; i < N / 2; i++) {
      take_units<GROUP, UNIT, 0, T>(rows[2 * i * STEP], rows[(2 * i + 1) * STEP], next[i], lanes);
      take_units<GROUP, UNIT, 1, T>(rows[2 * i * STEP], rows[(2 * i + 1) * STEP], next[i + N / 2], lanes);
    }
    for (int i = 0; i < N; i++) rows[i * STEP] = next[i];
  }
}
template <class T>
MASKCO_REGION_INLINE void transpose(Vector<T> (&rows)[LANES<T>]) {
  constexpr int L = LANES<T>, E = 16 / int(sizeof(T));  // within 16 bytes first: shuffles across are slower on x86
  for (int i = 0; i < L; i += E) transpose_units<E, 1, 1, T>(rows + i);
  if constexpr (L > E)
    for (int i = 0; i < E; i++) transpose_units<L, E, E, T>(rows + i);
}

// Copies to memory that is not read soon. Ordinary stores would fetch each line first, only to overwrite it.
template <class S>
MASKCO_REGION_INLINE void stream(const S* from, int64_t count, S* to) {
  const char* source = reinterpret_cast<const char*>(from);
  char *target = reinterpret_cast<char*>(to), *const end = target + count * int64_t(sizeof(S));
  const auto copy = [&](int64_t bytes) {
    __builtin_memcpy(target, source, bytes);
    target += bytes, source += bytes;
  };
#if defined(__x86_64__)
  typedef float Line __attribute__((vector_size(VECTOR_BYTES), aligned(1), may_alias));  // elements may have 2 bytes
  copy(std::min<int64_t>(-reinterpret_cast<uintptr_t>(target) % VECTOR_BYTES, end - target));
  for (; end - target >= VECTOR_BYTES; target += VECTOR_BYTES, source += VECTOR_BYTES) {
    const Line line = *reinterpret_cast<const Line*>(source);
#if VECTOR_BYTES > 16
    asm volatile("vmovntps %1, %0" : "=m"(*reinterpret_cast<Line*>(target)) : "v"(line));
#else
    asm volatile("movntps %1, %0" : "=m"(*reinterpret_cast<Line*>(target)) : "x"(line));
#endif
  }
#endif
  copy(end - target);
}
MASKCO_REGION_INLINE void end_streams() {  // call before another thread may read the data
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}
