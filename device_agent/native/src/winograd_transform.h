// The transforms of Winograd's minimal filtering F(M x M, 3 x 3) (Lavin and Gray 2015, arXiv 1509.09308), and lane
// shuffles for them.
//
// Interpolation points are 0, 1, -1 and infinity for M = 2, and 0, +-sqrt(1/2), +-sqrt(2) and infinity for M = 4, which
// leave a quarter of the error of the usual 0, +-1, +-2. Every product here is either by a power of two, hence exact, or
// used once: compilers cannot disagree about which products are contracted into multiply-adds.
#ifndef KERF_WINOGRAD_TRANSFORM_H
#define KERF_WINOGRAD_TRANSFORM_H

#include "vec.h"

namespace {

template <int M> struct Winograd;

template <> struct Winograd<2> {
  template <class Float> KERF_INLINE void input(const Float *d, Float *t) {
    t[0] = d[0] - d[2];
    t[1] = d[1] + d[2];
    t[2] = d[2] - d[1];
    t[3] = d[3] - d[1];
  }
  template <class Float> KERF_INLINE void output(const Float *m, Float *y) {
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = m[3] + (m[1] - m[2]);
  }
  // What output i of `output` is still to be multiplied with.
  static constexpr float factor(int) { return 1.0f; }
};

template <> struct Winograd<4> {
  static constexpr float POINT = 0.70710678118654752f;
  template <class Float> KERF_INLINE void input(const Float *d, Float *t) {
    const Float near_even = d[4] - 2.0f * d[2], near_odd = d[3] - 2.0f * d[1];
    const Float far_even = d[4] - 0.5f * d[2], far_odd = d[3] - 0.5f * d[1];
    t[0] = near_even + (d[0] - 0.5f * d[2]);
    t[1] = near_even + POINT * near_odd;
    t[2] = 2.0f * near_even - t[1];
    t[3] = far_even + (2.0f * POINT) * far_odd;
    t[4] = 2.0f * far_even - t[3];
    t[5] = (d[5] - 2.0f * d[3]) - 0.5f * near_odd;
  }
  template <class Float> KERF_INLINE void output(const Float *m, Float *y) {
    const Float near_sum = m[1] + m[2], near_difference = m[1] - m[2];
    const Float far_sum = m[3] + m[4], far_difference = m[3] - m[4];
    y[0] = m[0] + (near_sum + far_sum);
    y[1] = near_difference + 2.0f * far_difference;
    y[2] = near_sum + 4.0f * far_sum;
    y[3] = m[5] + (near_difference + 8.0f * far_difference);
  }
  static constexpr float factor(int i) { return i == 0 ? 1.0f : i == 1 ? POINT : i == 2 ? 0.5f : 0.5f * POINT; }
};

// The lower and the upper halves of `a` and `b`, interleaved.
template <int VL> KERF_INLINE typename Vec<VL>::Float lower_of(typename Vec<VL>::Float a, typename Vec<VL>::Float b) {
  if constexpr (VL == 16)
    return KERF_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  else if constexpr (VL == 8)
    return KERF_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  else
    return KERF_SHUFFLE(a, b, 0, 4, 1, 5);
}
template <int VL> KERF_INLINE typename Vec<VL>::Float upper_of(typename Vec<VL>::Float a, typename Vec<VL>::Float b) {
  if constexpr (VL == 16)
    return KERF_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  else if constexpr (VL == 8)
    return KERF_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  else
    return KERF_SHUFFLE(a, b, 2, 6, 3, 7);
}

// All of `v` but its first element, then element I of `after`.
template <int VL, int I>
KERF_INLINE typename Vec<VL>::Float shift_out(typename Vec<VL>::Float v, typename Vec<VL>::Float after) {
  if constexpr (VL == 16)
    return KERF_SHUFFLE(v, after, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 + I);
  else if constexpr (VL == 8)
    return KERF_SHUFFLE(v, after, 1, 2, 3, 4, 5, 6, 7, 8 + I);
  else
    return KERF_SHUFFLE(v, after, 1, 2, 3, 4 + I);
}

// Column i of VL neighbouring tiles, for i < M + 2. Reads (M + 1) * VL elements.
template <int M, int VL> KERF_INLINE void load_columns(const float *row, typename Vec<VL>::Float *columns) {
  typedef typename Vec<VL>::Float Float;
  const Float a = load<VL>(row), b = load<VL>(row + VL), after = load<VL>(row + M * VL);
  if constexpr (M == 2) {
    columns[0] = even_of<VL>(a, b);
    columns[1] = odd_of<VL>(a, b);
  } else {
    const Float c = load<VL>(row + 2 * VL), d = load<VL>(row + 3 * VL);
    const Float even_ab = even_of<VL>(a, b), even_cd = even_of<VL>(c, d);
    const Float odd_ab = odd_of<VL>(a, b), odd_cd = odd_of<VL>(c, d);
    columns[0] = even_of<VL>(even_ab, even_cd);
    columns[1] = even_of<VL>(odd_ab, odd_cd);
    columns[2] = odd_of<VL>(even_ab, even_cd);
    columns[3] = odd_of<VL>(odd_ab, odd_cd);
  }
  columns[M] = shift_out<VL, 0>(columns[0], after);
  columns[M + 1] = shift_out<VL, 1>(columns[1], after);
}

// The inverse: M columns of VL neighbouring tiles as M vectors of neighbouring elements. With M = VL = 4, a transposition.
template <int M, int VL>
KERF_INLINE void interleave(const typename Vec<VL>::Float *columns, typename Vec<VL>::Float *row) {
  typedef typename Vec<VL>::Float Float;
  if constexpr (M == 2) {
    row[0] = lower_of<VL>(columns[0], columns[1]);
    row[1] = upper_of<VL>(columns[0], columns[1]);
  } else {
    const Float lower_even = lower_of<VL>(columns[0], columns[2]), lower_odd = lower_of<VL>(columns[1], columns[3]);
    const Float upper_even = upper_of<VL>(columns[0], columns[2]), upper_odd = upper_of<VL>(columns[1], columns[3]);
    row[0] = lower_of<VL>(lower_even, lower_odd);
    row[1] = upper_of<VL>(lower_even, lower_odd);
    row[2] = lower_of<VL>(upper_even, upper_odd);
    row[3] = upper_of<VL>(upper_even, upper_odd);
  }
}

}  // namespace

#endif
