// One row at a time, for rows of any length: three passes of plain loops over its elements.
#pragma once
#include "exp2.h"
#include "kernels.h"

namespace {

constexpr ptrdiff_t lanes = 16;   // element j is summed in lane j % 16, on every instruction set
constexpr ptrdiff_t block = 512;  // stays in the first-level cache

template <class T>
void keep_larger(T* m, const T* x, ptrdiff_t n) {
#pragma omp simd
    for (ptrdiff_t l = 0; l < n; ++l) m[l] = x[l] > m[l] ? x[l] : m[l];
}

template <class T>
void keep_smaller(T* m, const T* x, ptrdiff_t n) {
#pragma omp simd
    for (ptrdiff_t l = 0; l < n; ++l) m[l] = x[l] < m[l] ? x[l] : m[l];
}

// The largest element, NaN passed over.
template <class T>
T maximum(const T* x, ptrdiff_t n) {
    constexpr ptrdiff_t width = 4 * lanes;
    T m[width];
    for (ptrdiff_t l = 0; l < width; ++l) m[l] = -std::numeric_limits<T>::infinity();
    ptrdiff_t i = 0;
    for (; i + width <= n; i += width) keep_larger(m, x + i, width);
    for (; i + lanes <= n; i += lanes) keep_larger(m, x + i, lanes);
    for (; i < n; ++i) keep_larger(m + i % lanes, x + i, 1);
    for (ptrdiff_t half = width / 2; half > 0; half /= 2) keep_larger(m, m + half, half);
    return m[0];
}

// A sum in lanes, see add_term.
template <class T>
struct Lanes {
    double high[lanes] = {};
    T low[lanes] = {};

    void add(ptrdiff_t l, double e, T tail) { add_term<T>(high[l], low[l], e, tail); }
    void add(const T* e, const T* tail, ptrdiff_t n) {
        ptrdiff_t i = 0;
        for (; i + lanes <= n; i += lanes) {
#pragma omp simd
            for (ptrdiff_t l = 0; l < lanes; ++l) add(l, e[i + l], tail[i + l]);
        }
        for (; i < n; ++i) add(i % lanes, e[i], tail[i]);
    }
    Pair total() {
        for (ptrdiff_t half = lanes / 2; half > 0; half /= 2) {
#pragma omp simd
            for (ptrdiff_t l = 0; l < half; ++l) add(l, high[l + half], low[l + half]);
        }
        return {high[0], low[0]};
    }
};

// What is left out of a sum of powers: nothing, or the terms equal to the largest, which are only counted.
enum Leave { NOTHING, LARGEST };

// The sum of 2^K exp(x / T); with `y`, the terms are stored there.
template <Leave leave, class T>
Pair sum_of_powers(const T* x, T* y, ptrdiff_t n, T m, Shift<T> shift, Rate<T> rate) {
    Lanes<T> sums;
    T value[block], tail[block];
    for (ptrdiff_t i = 0; i < n; i += block) {
        ptrdiff_t length = n - i < block ? n - i : block;
        T* e = y ? y + i : value;
#pragma omp simd
        for (ptrdiff_t j = 0; j < length; ++j) {
            Power<T> p = power<T>(x[i + j], shift, rate);
            bool left_out = leave == LARGEST && x[i + j] == m;
            e[j] = left_out ? 0 : p.value;
            tail[j] = left_out ? 0 : p.tail;
        }
        sums.add(e, tail, length);
    }
    return sums.total();
}

// The sum of exp(x / T) of a row; with `y`, the terms are stored there; with `with_largest`, the largest element is found
// too. It ends early where the row is not tame, which `tame` tells.
template <class T, bool with_largest>
struct TameSum {
    T largest = -std::numeric_limits<T>::infinity();
    Pair sum{0, 0};
    bool tame = true;

    TameSum(const T* x, T* y, ptrdiff_t n, Rate<T> rate) {
        Lanes<T> sums;
        T value[block], tail[block];
        for (ptrdiff_t i = 0; i < n && tame; i += block) {
            ptrdiff_t length = n - i < block ? n - i : block;
            T* e = y ? y + i : value;
            Magnitude<T> farthest = 0;
#pragma omp simd reduction(max : farthest)
            for (ptrdiff_t j = 0; j < length; ++j) {
                Magnitude<T> far = magnitude(x[i + j]);
                farthest = far > farthest ? far : farthest;
                Power<T> p = power<T>(x[i + j], rate);
                e[j] = p.value;
                tail[j] = p.tail;
            }
            tame = farthest <= magnitude(rate.tame);
            sums.add(e, tail, length);
            if constexpr (with_largest) {
                T m = maximum(x + i, length);
                largest = m > largest ? m : largest;
            }
        }
        sum = sums.total();
        tame = tame && sum.high < Format<T>::tame_sum;
    }
};

// Of float32 the powers are stored in y, without their tails.
inline void scale_row(float* y, ptrdiff_t n, Pair sum) {
    Scale<float> scale(reciprocal(sum));
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = scaled(Power<float>{y[i], 0}, scale);
}

inline bool tame_softmax_row(const float* x, float* y, ptrdiff_t n, Rate<float> rate) {
    if (x == y) return false;  // x is needed still, if the row is not tame
    TameSum<float, false> row(x, y, n, rate);
    if (!row.tame) return false;
    scale_row(y, n, row.sum);
    return true;
}

inline void softmax_row(const float* x, float* y, ptrdiff_t n, float m, Rate<float> rate) {
    scale_row(y, n, sum_of_powers<NOTHING>(x, y, n, m, Shift<float>(m, rate), rate));
}

// Of float64 the powers are computed twice: stored, their rounding would cost another unit in the last place.
inline bool tame_softmax_row(const double* x, double* y, ptrdiff_t n, Rate<double> rate) {
    TameSum<double, false> row(x, nullptr, n, rate);
    if (!row.tame) return false;
    Scale<double> scale(reciprocal(row.sum));
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = scaled(power<double>(x[i], rate), scale);
    return true;
}

// y = exp(x / T) / sum, the powers computed anew.
template <class T>
void softmax_of(const T* x, T* y, ptrdiff_t n, Shift<T> shift, Rate<T> rate, Pair sum) {
    Scale<T> scale(reciprocal(sum));
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = scaled(power<T>(x[i], shift, rate), scale);
}

inline void softmax_row(const double* x, double* y, ptrdiff_t n, double m, Rate<double> rate) {
    Shift<double> shift(m, rate);
    double* none = nullptr;
    softmax_of(x, y, n, shift, rate, sum_of_powers<NOTHING>(x, none, n, m, shift, rate));
}

// max(x), and log(sum(exp((x - max(x)) / T))), of a tame row without a term that outweighs all others.
template <class T>
struct TameLog {
    T max;
    Logarithm<T> log;
    bool tame;

    TameLog(const T* x, ptrdiff_t n, Rate<T> rate) {
        T* none = nullptr;
        TameSum<T, true> row(x, none, n, rate);
        max = row.largest;
        tame = row.tame;
        if (!tame) return;
        Logarithm<T> all = ratio<T>(row.sum, power<T>(max, rate));
        tame = all >= 2;  // else log1p of the others holds more
        if (tame) log = std::log(all);
    }
};

// Adds a row, or a part of it, to its partition.
template <class T>
void add_to(Partition& p, const T* x, ptrdiff_t n, Shift<T> shift, Rate<T> rate) {
    T m = static_cast<T>(p.max), *none = nullptr;
    Pair others = sum_of_powers<LARGEST>(x, none, n, m, shift, rate);
    accumulate(p.others, p.low, others.high, others.low);
    ptrdiff_t equal = 0;
#pragma omp simd reduction(+ : equal)
    for (ptrdiff_t i = 0; i < n; ++i) equal += x[i] == m;
    p.equal += static_cast<double>(equal);
}

// log(sum(exp((x - m) / T))) of a row.
template <class T>
Logarithm<T> log_of_rest(const T* x, ptrdiff_t n, T m, Rate<T> rate) {
    Shift<T> shift(m, rate);
    Partition p{m, 0, 0, 0};
    add_to(p, x, n, shift, rate);
    return log1p_of<T>({p.others, p.low}, power<T>(m, shift, rate), p.equal);
}

template <class T>
void log_softmax_of(const T* x, T* y, ptrdiff_t n, T m, const Inverse<T>& inverse, Logarithm<T> log_of_rest) {
    T log = static_cast<T>(log_of_rest);
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = log_probability(x[i], m, inverse, log);
}

template <class T>
void softmax_part(const T* x, T* y, ptrdiff_t n, const Partition& p, Rate<T> rate) {
    T m = static_cast<T>(p.max);
    Shift<T> shift(m, rate);
    Power<T> largest = power<T>(m, shift, rate);
    Pair sum{p.others, p.low};
    double e = largest.value, product = p.equal * e;
    accumulate(sum.high, sum.low, product, fma(p.equal, e, -product) + p.equal * largest.tail);
    softmax_of(x, y, n, shift, rate, sum);
}

template <class T>
void log_softmax_part(const T* x, T* y, ptrdiff_t n, const Partition& p, Rate<T> rate, const Inverse<T>& inverse) {
    T m = static_cast<T>(p.max);
    Power<T> largest = power<T>(m, Shift<T>(m, rate), rate);
    log_softmax_of(x, y, n, m, inverse, log1p_of<T>({p.others, p.low}, largest, p.equal));
}

}  // namespace
