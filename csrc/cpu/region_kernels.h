// The inner loops of region pooling, compiled once per instruction set: region_engine.h includes this file in a
// namespace and under a target each, with VECTOR_BYTES set. So no include guard, and nothing here but what must be
// compiled so.
//
// Both are sums over the entries of a block-sparse weight matrix (region_weights.h), along the axis that is contiguous:
// with pixels side by side an entry is a vector of pixels, with channels side by side it is one pixel.

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
  // normal: the exponent gets the wider bias (Inf and NaN the largest one); subnormal: by a subtraction of floats
  const Vector<uint32_t> special = (Vector<uint32_t>)(exponent == 0x0f800000u) & (112u << 23);
  const Vector<uint32_t> normal = magnitude + (112u << 23) + special;
  const Vector<uint32_t> one = magnitude + (113u << 23);
  const Vector<float> small = reinterpret_cast<Vector<float>>(one) - 6.103515625e-05f;  // 2^-14
  const Vector<uint32_t> is_small = (Vector<uint32_t>)(exponent == 0u);
  v = reinterpret_cast<Vector<float>>((is_small & reinterpret_cast<Vector<uint32_t>>(small)) | (~is_small & normal) |
                                      sign);
}
template <class T, class S>
MASKCO_REGION_INLINE void store(const Vector<T>& v, S* p, int64_t count) {
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

// Of groups of G lanes in a and b, side by side, the first halves plus the second halves.
template <int G, class T, size_t... I>
MASKCO_REGION_INLINE void fold(const Vector<T>& a, const Vector<T>& b, Vector<T>& out, std::index_sequence<I...>) {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12  // that GCC has only its own older builtin
  using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef Index Indices __attribute__((vector_size(sizeof(Vector<T>))));
  out = __builtin_shuffle(a, b, Indices{Index(I / (G / 2) * G + I % (G / 2))...}) +
        __builtin_shuffle(a, b, Indices{Index(I / (G / 2) * G + I % (G / 2) + G / 2)...});
#else
  out = __builtin_shufflevector(a, b, int(I / (G / 2) * G + I % (G / 2))...) +
        __builtin_shufflevector(a, b, int(I / (G / 2) * G + I % (G / 2) + G / 2)...);
#endif
}
// out[j] = the sum over the lanes of sum[j], for J vectors at a time: about three instructions each. G lanes are left.
template <int J, int G, class T>
MASKCO_REGION_INLINE void add_lanes(Vector<T>* sum, T* out, int64_t count) {
  constexpr auto lanes = std::make_index_sequence<LANES<T>>();
  if constexpr (G == 1) {
    for (int j = 0; j < J; j++) store<T>(sum[j], out + j * LANES<T>, count - j * LANES<T>);
  } else if constexpr (J == 1) {
    fold<G, T>(sum[0], sum[0], sum[0], lanes);
    add_lanes<1, G / 2, T>(sum, out, count);
  } else {
    for (int j = 0; j < J; j += 2) fold<G, T>(sum[j], sum[j + 1], sum[j / 2], lanes);
    add_lanes<J / 2, G / 2, T>(sum, out, count);
  }
}

// out[i][j] = Σ_k w[i][k] x[k, j], k contiguous, for J columns and the I regions from `region` (I > 1: of equal
// entries)
template <int I, int J, class S, class T>
MASKCO_REGION_INLINE void dot(const WeightsView<T>& weights, int64_t region, const S* x, int64_t column_stride, T* out,
                              int64_t out_stride) {
  Vector<T> sum[I][J] = {};
  const int64_t begin = weights.begin[region], count = weights.begin[region + 1] - begin;
  const T* w = weights.weight + begin * LANES<T>;
  const int64_t* block = weights.block + begin;
  for (int64_t e = 0; e < count; e++, w += LANES<T>) {
    Vector<T> factor[I], value[J];
    for (int i = 0; i < I; i++) load(w + i * count * LANES<T>, factor[i]);
    const S* p = x + block[e] * LANES<T>;
    for (int j = 0; j < J; j++) load(p + j * column_stride, value[j]);
    for (int i = 0; i < I; i++)
      for (int j = 0; j < J; j++) sum[i][j] += factor[i] * value[j];
  }
  for (int i = 0; i < I; i++) add_lanes<J, LANES<T>, T>(sum[i], out + i * out_stride, J);
}
template <int I, class S, class T>
MASKCO_REGION_INLINE void dot_columns(const WeightsView<T>& weights, int64_t region, const S* x, int64_t column_stride,
                                      int64_t columns, T* out, int64_t out_stride) {
  constexpr int J = I == 1 ? 8 : 4;
  int64_t j = 0;
  for (; j + J <= columns; j += J)
    dot<I, J>(weights, region, x + j * column_stride, column_stride, out + j, out_stride);
  for (; j < columns; j++) dot<I, 1>(weights, region, x + j * column_stride, column_stride, out + j, out_stride);
}

// out[i][j] = Σ_k w[i][k] x[k, j], j contiguous, for J vectors of columns and I regions as above
template <int I, int J, class S, class T>
MASKCO_REGION_INLINE void axpy(const WeightsView<T>& weights, int64_t region, const S* x, int64_t row_stride, T* out,
                               int64_t out_stride) {
  Vector<T> sum[I][J] = {};
  const int64_t begin = weights.begin[region], count = weights.begin[region + 1] - begin;
  const T* w = weights.weight + begin;
  const int64_t* pixel = weights.block + begin;
  for (int64_t e = 0; e < count; e++) {
    const S* p = x + pixel[e] * row_stride;
    Vector<T> value[J];
    for (int j = 0; j < J; j++) load(p + j * LANES<T>, value[j]);
    for (int i = 0; i < I; i++)
      for (int j = 0; j < J; j++) sum[i][j] += w[i * count + e] * value[j];
  }
  for (int i = 0; i < I; i++)
    for (int j = 0; j < J; j++) store<T>(sum[i][j], out + i * out_stride + j * LANES<T>, LANES<T>);
}
template <int J, class S, class T>
MASKCO_REGION_INLINE void axpy_regions(const WeightsView<T>& weights, const S* x, int64_t row_stride, T* out,
                                       int64_t out_stride) {
  constexpr int64_t I = VECTOR_BYTES == 64 ? 4 : 2;
  int64_t i = 0;
  if constexpr (J <= 4)
    for (; weights.dense && i + I <= weights.regions; i += I)
      axpy<I, J>(weights, i, x, row_stride, out + i * out_stride, out_stride);
  for (; i < weights.regions; i++) axpy<1, J>(weights, i, x, row_stride, out + i * out_stride, out_stride);
}

template <class S, class T>
static void pool(const WeightsView<T>& weights, const Columns<const S>& x, T* out, int64_t out_stride) {
  const int64_t regions = weights.regions;
  if (x.pixels_contiguous) {
    constexpr int64_t I = VECTOR_BYTES == 64 ? 4 : 2, TILE = 8;
    for (int64_t j = 0; j < x.columns; j += TILE) {  // a few columns stay in the cache for all regions
      const int64_t columns = x.columns - j < TILE ? x.columns - j : TILE;
      const S* p = x.data + j * x.column_stride;
      int64_t i = 0;
      for (; weights.dense && i + I <= regions; i += I)
        dot_columns<I>(weights, i, p, x.column_stride, columns, out + i * out_stride + j, out_stride);
      for (; i < regions; i++)
        dot_columns<1>(weights, i, p, x.column_stride, columns, out + i * out_stride + j, out_stride);
    }
    return;
  }
  constexpr int64_t L = LANES<T>;
  int64_t j = 0;
  for (; !weights.dense && j + 8 * L <= x.columns; j += 8 * L)
    axpy_regions<8>(weights, x.data + j, x.pixel_stride, out + j, out_stride);
  for (; j + 4 * L <= x.columns; j += 4 * L) axpy_regions<4>(weights, x.data + j, x.pixel_stride, out + j, out_stride);
  for (; j + L <= x.columns; j += L) axpy_regions<1>(weights, x.data + j, x.pixel_stride, out + j, out_stride);
  for (; j < x.columns; j++)
    for (int64_t i = 0; i < regions; i++) {
      T sum = 0;
      for (int64_t e = weights.begin[i]; e < weights.begin[i + 1]; e++)
        sum += weights.weight[e] * T(x.data[weights.block[e] * x.pixel_stride + j]);
      out[i * out_stride + j] = sum;
    }
}

// x[k, j] = Σ_i w[i][k] g[i][j]: each block of pixels gathers from the regions that have an entry there
template <int J, class S, class T>
MASKCO_REGION_INLINE void gather_pixels(const WeightsView<T>& weights, const BlockView& entries, const T* g,
                                        int64_t g_stride, S* x, int64_t column_stride, int64_t pixels) {
  for (int64_t b = 0; b * LANES<T> < pixels; b++) {
    Vector<T> sum[J] = {};
    for (int64_t e = entries.begin[b]; e < entries.begin[b + 1]; e++) {
      const T* row = g + entries.region[e] * g_stride;
      Vector<T> w;
      load(weights.weight + entries.entry[e] * LANES<T>, w);
      for (int j = 0; j < J; j++) sum[j] += row[j] * w;
    }
    for (int j = 0; j < J; j++) store<T>(sum[j], x + j * column_stride + b * LANES<T>, pixels - b * LANES<T>);
  }
}
template <int J, class S, class T>
MASKCO_REGION_INLINE void gather_channels(const WeightsView<T>& weights, const BlockView& entries, const T* g,
                                          int64_t g_stride, S* x, int64_t pixel_stride, int64_t pixels) {
  for (int64_t k = 0; k < pixels; k++) {
    Vector<T> sum[J] = {};
    for (int64_t e = entries.begin[k]; e < entries.begin[k + 1]; e++) {
      const T* row = g + entries.region[e] * g_stride;
      const T w = weights.weight[entries.entry[e]];
      for (int j = 0; j < J; j++) {
        Vector<T> value;
        load(row + j * LANES<T>, value);
        sum[j] += w * value;
      }
    }
    for (int j = 0; j < J; j++) store<T>(sum[j], x + k * pixel_stride + j * LANES<T>, LANES<T>);
  }
}

template <class S, class T>
static void spread(const WeightsView<T>& weights, const BlockView& entries, const T* g, int64_t g_stride,
                   const Columns<S>& x) {
  int64_t j = 0;
  if (x.pixels_contiguous) {
    for (; j + 8 <= x.columns; j += 8)
      gather_pixels<8>(weights, entries, g + j, g_stride, x.data + j * x.column_stride, x.column_stride, x.pixels);
    for (; j < x.columns; j++)
      gather_pixels<1>(weights, entries, g + j, g_stride, x.data + j * x.column_stride, x.column_stride, x.pixels);
    return;
  }
  constexpr int64_t L = LANES<T>;
  for (; j + 8 * L <= x.columns; j += 8 * L)
    gather_channels<8>(weights, entries, g + j, g_stride, x.data + j, x.pixel_stride, x.pixels);
  for (; j + L <= x.columns; j += L)
    gather_channels<1>(weights, entries, g + j, g_stride, x.data + j, x.pixel_stride, x.pixels);
  for (; j < x.columns; j++)
    for (int64_t k = 0; k < x.pixels; k++) {
      T sum = 0;
      for (int64_t e = entries.begin[k]; e < entries.begin[k + 1]; e++)
        sum += weights.weight[entries.entry[e]] * g[entries.region[e] * g_stride + j];
      x.data[k * x.pixel_stride + j] = S(sum);
    }
}

#define MASKCO_REGION_KERNELS(S, T)                                                                               \
  void pool_##S(const WeightsView<T>& w, const Columns<const S>& x, T* out, int64_t stride) {                     \
    pool(w, x, out, stride);                                                                                      \
  }                                                                                                               \
  void spread_##S(const WeightsView<T>& w, const BlockView& e, const T* g, int64_t stride, const Columns<S>& x) { \
    spread(w, e, g, stride, x);                                                                                   \
  }                                                                                                               \
  template <>                                                                                                     \
  RegionKernels<S> kernels<S>() {                                                                                 \
    return {LANES<T>, &pool_##S, &spread_##S};                                                                    \
  }
template <class S>
RegionKernels<S> kernels();
MASKCO_REGION_KERNELS(float, float)
MASKCO_REGION_KERNELS(double, double)
MASKCO_REGION_KERNELS(Half, float)
MASKCO_REGION_KERNELS(BFloat16, float)

#undef MASKCO_REGION_KERNELS
#undef MASKCO_REGION_INLINE
