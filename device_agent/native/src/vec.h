// Short vectors of float32 in the compiler's portable notation, and how work is shared among threads.
#ifndef KERF_VEC_H
#define KERF_VEC_H

#include <stdint.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define KERF_INLINE static inline __attribute__((always_inline))
#define KERF_UNROLL _Pragma("GCC unroll 32")

// Internal linkage throughout: the linker must not merge code that was compiled for different instruction sets.
namespace {

template <int VL> struct Vec {
  typedef float Float __attribute__((vector_size(VL * 4)));
  typedef float FloatUnaligned __attribute__((vector_size(VL * 4), aligned(4), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(VL * 4)));
  typedef int32_t Int __attribute__((vector_size(VL * 4)));
  typedef uint32_t BitsUnaligned __attribute__((vector_size(VL * 4), aligned(4), may_alias));
};

template <int VL> KERF_INLINE typename Vec<VL>::Float load(const float *p) {
  return *(const typename Vec<VL>::FloatUnaligned *)p;
}

template <int VL> KERF_INLINE void store(float *p, typename Vec<VL>::Float v) {
  *(typename Vec<VL>::FloatUnaligned *)p = v;
}

template <int VL> KERF_INLINE typename Vec<VL>::Float splat(float value) {
  return value - (typename Vec<VL>::Float){};
}

// A NaN passes through, as it fails both comparisons.
template <int VL>
KERF_INLINE typename Vec<VL>::Float clamp(typename Vec<VL>::Float v, typename Vec<VL>::Float lower,
                                            typename Vec<VL>::Float upper) {
  v = lower > v ? lower : v;
  return upper < v ? upper : v;
}

// Masked by AND, not by multiplication: padding stays zero even where the value beside it is infinite.
template <int VL> KERF_INLINE typename Vec<VL>::Float keep(typename Vec<VL>::Float v, const uint32_t *mask) {
  typedef typename Vec<VL>::Bits Bits;
  const Bits m = *(const typename Vec<VL>::BitsUnaligned *)mask;
  return (typename Vec<VL>::Float)((Bits)v & m);
}

// a * b + c with one rounding wherever the instruction set can. On vectors the compiler contracts a * b + c by itself; of
// plain numbers gcc 12 leaves some uncontracted, depending on the instruction set.
KERF_INLINE float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

KERF_INLINE float clamp_one(float v, float lower, float upper) {
  v = lower > v ? lower : v;
  return upper < v ? upper : v;
}

#if defined(__clang__) || __GNUC__ >= 12
#define KERF_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define KERF_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (decltype((a) < (b))){__VA_ARGS__})
#endif

// Elements 0, 2, 4... of the 2 * VL elements of `a` and `b`.
template <int VL> KERF_INLINE typename Vec<VL>::Float even_of(typename Vec<VL>::Float a, typename Vec<VL>::Float b) {
  if constexpr (VL == 16)
    return KERF_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  else if constexpr (VL == 8)
    return KERF_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
  else
    return KERF_SHUFFLE(a, b, 0, 2, 4, 6);
}

// Elements 1, 3, 5... of the 2 * VL elements of `a` and `b`.
template <int VL> KERF_INLINE typename Vec<VL>::Float odd_of(typename Vec<VL>::Float a, typename Vec<VL>::Float b) {
  if constexpr (VL == 16)
    return KERF_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  else if constexpr (VL == 8)
    return KERF_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  else
    return KERF_SHUFFLE(a, b, 1, 3, 5, 7);
}

// The last element of `before`, then all of `v` but its last one.
template <int VL>
KERF_INLINE typename Vec<VL>::Float shift_in(typename Vec<VL>::Float before, typename Vec<VL>::Float v) {
#if defined(__AVX512F__)
  // gcc 12 takes a shuffle that overwrites its operands.
  if constexpr (VL == 16)
    return (typename Vec<VL>::Float)_mm512_alignr_epi32((__m512i)v, (__m512i)before, 15);
  else
#endif
  if constexpr (VL == 16)
    return KERF_SHUFFLE(before, v, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30);
  else if constexpr (VL == 8)
    return KERF_SHUFFLE(before, v, 7, 8, 9, 10, 11, 12, 13, 14);
  else
    return KERF_SHUFFLE(before, v, 3, 4, 5, 6);
}

// Makes the compiler keep `v` in a register, instead of reading memory again at each use.
#if defined(__x86_64__)
#define KERF_IN_REGISTER(v) __asm__("" : "+v"(v))
#elif defined(__aarch64__)
#define KERF_IN_REGISTER(v) __asm__("" : "+w"(v))
#else
#define KERF_IN_REGISTER(v)
#endif

// 0, 1, 2...
template <int VL> KERF_INLINE typename Vec<VL>::Int lane_numbers() {
  if constexpr (VL == 16)
    return (typename Vec<VL>::Int){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  else if constexpr (VL == 8)
    return (typename Vec<VL>::Int){0, 1, 2, 3, 4, 5, 6, 7};
  else
    return (typename Vec<VL>::Int){0, 1, 2, 3};
}

// The first `count` elements (1 to VL), and no other; zeros in the other lanes.
template <int VL> KERF_INLINE typename Vec<VL>::Float load_first(const float *p, int count) {
#if defined(__AVX512F__) && defined(__AVX512VL__)
  const uint32_t lanes = (1u << count) - 1;
  if constexpr (VL == 16)
    return (typename Vec<VL>::Float)_mm512_maskz_loadu_ps((__mmask16)lanes, p);
  else if constexpr (VL == 8)
    return (typename Vec<VL>::Float)_mm256_maskz_loadu_ps((__mmask8)lanes, p);
  else
    return (typename Vec<VL>::Float)_mm_maskz_loadu_ps((__mmask8)lanes, p);
#else
  if (count == VL) return load<VL>(p);
  float lanes[VL] = {};
  for (int i = 0; i < count; i++) lanes[i] = p[i];
  return load<VL>(lanes);
#endif
}

// The lanes [first, last) of the vector at `p`, zeros in the others; all of it may be read. Both may lie outside of a
// vector shorter than 16.
template <int VL> KERF_INLINE typename Vec<VL>::Float load_between(const float *p, int first, int last) {
#if defined(__AVX512F__)
  if constexpr (VL == 16) {
    const uint32_t lanes = (1u << last) - (1u << first);
    return (typename Vec<VL>::Float)_mm512_maskz_loadu_ps((__mmask16)lanes, p);
  }
#endif
  typedef typename Vec<VL>::Bits Bits;
  const Bits inside = (Bits)((lane_numbers<VL>() >= first) & (lane_numbers<VL>() < last));
  return (typename Vec<VL>::Float)((Bits)load<VL>(p) & inside);
}

// The first `count` lanes only, and no byte more.
template <int VL> KERF_INLINE void store_first(float *p, typename Vec<VL>::Float v, int count) {
#if defined(__AVX512F__) && defined(__AVX512VL__)
  const uint32_t lanes = (1u << count) - 1;
  if constexpr (VL == 16)
    _mm512_mask_storeu_ps(p, (__mmask16)lanes, (__m512)v);
  else if constexpr (VL == 8)
    _mm256_mask_storeu_ps(p, (__mmask8)lanes, (__m256)v);
  else
    _mm_mask_storeu_ps(p, (__mmask8)lanes, (__m128)v);
#else
  if (count == VL) return store<VL>(p, v);
  KERF_UNROLL for (int i = 0; i < VL; i++)
    if (i < count) p[i] = v[i];
#endif
}

#if defined(__AVX512F__) && defined(__AVX512VL__)
#define KERF_HAS_MASKED_STORES 1
#else
#define KERF_HAS_MASKED_STORES 0
#endif

// Vectors of two halves. VL is 16, whose halves hold more than a few columns.
template <int VL> KERF_INLINE typename Vec<VL>::Float halves_of(float low, float high) {
  const typename Vec<VL>::Int is_low = lane_numbers<VL>() < VL / 2;
  return is_low ? splat<VL>(low) : splat<VL>(high);
}

template <int VL> KERF_INLINE typename Vec<VL>::Float load_halves(const float *low, const float *high) {
#if defined(__AVX512F__)
  static_assert(VL == 16, "halves of 8");
  const __m512 first = _mm512_castps256_ps512((__m256)load<8>(low));
  return (typename Vec<VL>::Float)_mm512_insertf32x8(first, (__m256)load<8>(high), 1);
#else
  typename Vec<VL>::Float v;
  for (int i = 0; i < VL; i++) v[i] = i < VL / 2 ? low[i] : high[i - VL / 2];
  return v;
#endif
}

// In each half: the element of `before` at its end, then all of `v` but its last one.
template <int VL>
KERF_INLINE typename Vec<VL>::Float shift_in_halves(typename Vec<VL>::Float before, typename Vec<VL>::Float v) {
  static_assert(VL == 16, "halves of 8");
  return KERF_SHUFFLE(before, v, 7, 16, 17, 18, 19, 20, 21, 22, 15, 24, 25, 26, 27, 28, 29, 30);
}

// The first `count` lanes of each half.
template <int VL>
KERF_INLINE void store_first_of_halves(float *low, float *high, typename Vec<VL>::Float v, int count) {
#if KERF_HAS_MASKED_STORES
  static_assert(VL == 16, "halves of 8");
  const uint32_t lanes = (1u << count) - 1;
  _mm512_mask_storeu_ps(low, (__mmask16)lanes, (__m512)v);
  _mm512_mask_storeu_ps(high - 8, (__mmask16)(lanes << 8), (__m512)v);
#else
  for (int i = 0; i < count; i++) low[i] = v[i], high[i] = v[i + VL / 2];
#endif
}

template <int VL, bool EVEN, bool ODD> KERF_INLINE void split_vector(const float *source, float *even, float *odd) {
  const typename Vec<VL>::Float a = load<VL>(source), b = load<VL>(source + VL);
  if (EVEN) store<VL>(even, even_of<VL>(a, b));
  if (ODD) store<VL>(odd, odd_of<VL>(a, b));
}

// Every second element of `source`, from its first (EVEN) and from its second one (ODD); the width is at least 2 * VL.
// The last vector overlaps the one before, so that nothing past the row is read or written. VL = 0 is for any width.
template <int VL, bool EVEN, bool ODD>
KERF_INLINE void split_row_by_two(const float *__restrict source, int width, float *__restrict even,
                                  float *__restrict odd) {
  const int num_even = (width + 1) / 2, num_odd = width / 2;
  int x = 0;
  if constexpr (VL > 0) {
    for (; x + VL <= num_odd; x += VL) split_vector<VL, EVEN, ODD>(source + 2 * x, even + x, odd + x);
    if (x < num_odd) {
      x = num_odd - VL;
      split_vector<VL, EVEN, ODD>(source + 2 * x, even + x, odd + x);
    }
  } else {
    for (; x < num_odd; x++) {
      if (EVEN) even[x] = source[2 * x];
      if (ODD) odd[x] = source[2 * x + 1];
    }
  }
  if (num_odd < num_even) {
    if (EVEN) even[num_odd] = source[width - 1];
    if (ODD) odd[num_odd] = 0.0f;
  }
}

// [first, last) of `count` that are share `part` of `parts`: as even as possible, in order.
struct Share {
  int first, last;
};
KERF_INLINE Share share_of(int count, int part, int parts) {
  return {(int)((int64_t)count * part / parts), (int)((int64_t)count * (part + 1) / parts)};
}

// Threads share the rows of an image where there are enough, else its channels: what a thread has written in one step is
// then mostly what it reads in the next one, and stays in the cache of its core.
struct PlaneShare {
  Share channels, rows;
};
KERF_INLINE bool are_rows_shared(int rows, int parts) { return parts > 1 && rows >= 4 * parts; }
KERF_INLINE PlaneShare share_of_planes(int channels, int rows, int part, int parts) {
  if (are_rows_shared(rows, parts)) return {{0, channels}, share_of(rows, part, parts)};
  return {share_of(channels, part, parts), {0, rows}};
}

}  // namespace

#endif
