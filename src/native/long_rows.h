// One row at a time, for rows of any length: passes of plain loops over its elements, which threads may share.
#pragma once
#include <atomic>

#include "log.h"
#include "kernels.h"
#include "threads.h"

namespace {

constexpr ptrdiff_t lanes = 16;   // element j is summed in lane j % 16, on every instruction set
constexpr ptrdiff_t block = 512;  // stays in the first-level cache

template <class T>
[[gnu::always_inline]] inline void keep_larger(T* m, const T* x, ptrdiff_t n) {
#pragma omp simd
    for (ptrdiff_t l = 0; l < n; ++l) m[l] = x[l] > m[l] ? x[l] : m[l];
}

// The largest of 2 * half elements, in m[0]: a template, since a loop over `half` stays one and is slow.
template <ptrdiff_t half, class T>
[[gnu::always_inline]] inline void fold_maximum(T* m) {
    keep_larger(m, m + half, half);
    if constexpr (half > 1) fold_maximum<half / 2>(m);
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
    if (i < n && n >= lanes) keep_larger(m, x + n - lanes, lanes);  // some of them once more
    else
        for (; i < n; ++i) keep_larger(m + i % lanes, x + i, 1);
    fold_maximum<width / 2>(m);
    return m[0];
}

// The largest magnitude.
template <class T>
Magnitude<T> farthest(const T* x, ptrdiff_t n) {
    Magnitude<T> m = 0;
#pragma omp simd reduction(max : m)
    for (ptrdiff_t i = 0; i < n; ++i) {
        Magnitude<T> far = magnitude(x[i]);
        m = far > m ? far : m;
    }
    return m;
}

// The sum of the sums part(from, length) of the chunks of n elements.
template <class Part>
Pair sum_chunks(ptrdiff_t n, int threads, Part part) {
    if (n <= chunk) return part(ptrdiff_t{0}, n);
    Pair sum{0, 0};
    add_chunks(n, threads, part, [&](Pair p) { accumulate(sum.high, sum.low, p.high, p.low); });
    return sum;
}

// A sum in lanes, see add_term.
template <class T, class Result = T>
struct Lanes {
    double high[lanes] = {};
    T low[lanes] = {};

    void add(ptrdiff_t l, double e, T tail) { add_term<Result>(high[l], low[l], e, tail); }
    void add(const T* e, const T* tail, ptrdiff_t n) {
        ptrdiff_t i = 0;
        for (; i + lanes <= n; i += lanes) {
#pragma omp simd
            for (ptrdiff_t l = 0; l < lanes; ++l) add(l, e[i + l], tail[i + l]);
        }
        for (; i < n; ++i) add(i % lanes, e[i], tail[i]);
    }
    // The same where 15 more elements, which do not count, can be read: a scalar end would keep the next loads waiting.
    void add_padded(const T* e, const T* tail, ptrdiff_t n) {
        ptrdiff_t whole = n / lanes * lanes;
        add(e, tail, whole);
        e += whole, tail += whole, n -= whole;
        if (n == 0) return;
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) add(l, l < n ? e[l] : 0, l < n ? tail[l] : 0);
    }
    template <ptrdiff_t half = lanes / 2>
    Pair total() {
#pragma omp simd
        for (ptrdiff_t l = 0; l < half; ++l) add(l, high[l + half], low[l + half]);
        if constexpr (half > 1) return total<half / 2>();
        return {high[0], low[0]};
    }
};

template <class T>
T maximum(const T* x, ptrdiff_t n, int threads) {
    T m = -std::numeric_limits<T>::infinity();
    add_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) { return maximum(x + from, length); },
               [&](T part) { keep_larger(&m, &part, 1); });
    return m;
}

// What is left out of a sum of powers: nothing, or the terms equal to the largest, which are only counted.
enum Leave { NOTHING, LARGEST };

// The sum of 2^K exp(x / T) over a chunk; with `y`, the terms are stored there.
template <Leave leave, class Result, class T>
Pair sum_of_powers(const T* x, T* y, ptrdiff_t n, T m, Shift<T> shift, Rate<T> rate) {
    Lanes<T, Result> sums;
    T value[block], tail[block];
    for (ptrdiff_t i = 0; i < n; i += block) {
        ptrdiff_t length = std::min(block, n - i);
        T* e = y ? y + i : value;
#pragma omp simd
        for (ptrdiff_t j = 0; j < length; ++j) {
            Power<T> p = power<Result>(x[i + j], shift, rate);
            bool left_out = leave == LARGEST && x[i + j] == m;
            e[j] = left_out ? 0 : p.value;
            tail[j] = left_out ? 0 : p.tail;
        }
        sums.add(e, tail, length);
    }
    return sums.total();
}

// The sum of exp(x / T) of a tame row; with `y`, the terms are stored there, and with `tails`, which is for rows of one chunk,
// their tails; with `with_largest`, the largest element is found too. It ends early where the row is not tame, which `tame`
// tells.
template <class T, bool with_largest, class Result = T>
struct TameSum {
    T largest = -std::numeric_limits<T>::infinity();
    Pair sum{0, 0};
    bool tame = true;

    // Of a row.
    TameSum(const T* x, T* y, ptrdiff_t n, Rate<T> rate, int threads, T* tails = nullptr) {
        std::atomic<bool> go_on = true;
        add_chunks(n, threads,
            [&](ptrdiff_t from, ptrdiff_t length) {
                return TameSum(x + from, y ? y + from : y, tails, go_on.load(std::memory_order_relaxed) ? length : 0, rate);
            },
            [&](const TameSum& part) {
                accumulate(sum.high, sum.low, part.sum.high, part.sum.low);
                keep_larger(&largest, &part.largest, 1);
                if (!part.tame) tame = false, go_on.store(false, std::memory_order_relaxed);
            });
        tame = tame && sum.high < Format<T>::tame_sum;
    }

private:
    // Of a chunk.
    TameSum(const T* x, T* y, T* tails, ptrdiff_t n, Rate<T> rate) {
        Lanes<T, Result> sums;
        T values[block], some_tails[block], r[block], scale[block];
        for (ptrdiff_t i = 0; i < n && tame; i += block) {
            ptrdiff_t length = std::min(block, n - i);
            T *e = y ? y + i : values, *tail = tails ? tails + i : some_tails;
            Magnitude<T> farthest = 0;
#pragma omp simd reduction(max : farthest)
            for (ptrdiff_t j = 0; j < length; ++j) {
                Magnitude<T> far = magnitude(x[i + j]);
                farthest = far > farthest ? far : farthest;
                put(r[j], scale[j], reduced<Result>(x[i + j], rate));
            }
#pragma omp simd  // a loop of its own: the first keeps fewer operations in flight
            for (ptrdiff_t j = 0; j < length; ++j) put(e[j], tail[j], power<Result>(Reduced<T>{r[j], scale[j]}));
            tame = farthest <= magnitude(rate.tame);
            sums.add(e, tail, length);
            if constexpr (with_largest) {
                T m = maximum(x + i, length);
                keep_larger(&largest, &m, 1);
            }
        }
        sum = sums.total();
    }
};

template <Leave leave, class Result, class T>
Pair sum_of_powers(const T* x, T* y, ptrdiff_t n, T m, Shift<T> shift, Rate<T> rate, int threads) {
    return sum_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        return sum_of_powers<leave, Result>(x + from, y ? y + from : y, length, m, shift, rate);
    });
}

// Of float32 the powers are stored in y, without their tails. (A function of its own for each chunk, not a lambda: what
// that captures might change with every store, and the loop would not vectorise.)
inline void scale_chunk(float* y, ptrdiff_t n, Scale<float> scale) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = scaled(Power<float>{y[i], 0}, scale);
}

inline void scale_row(float* y, ptrdiff_t n, Pair sum, int threads) {
    Scale<float> scale(reciprocal(sum));
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) { scale_chunk(y + from, length, scale); });
}

inline bool tame_softmax_row(const float* x, float* y, ptrdiff_t n, Rate<float> rate, int threads) {
    if (x == y) return false;  // x is needed still, if the row is not tame
    TameSum<float, false> row(x, y, n, rate, threads);
    if (row.tame) scale_row(y, n, row.sum, threads);
    return row.tame;
}

inline void softmax_row(const float* x, float* y, ptrdiff_t n, float m, Rate<float> rate, int threads) {
    scale_row(y, n, sum_of_powers<NOTHING, float>(x, y, n, m, Shift<float>(m, rate), rate, threads), threads);
}

// Of float64 the tails are kept as well, or the powers computed twice: without, it would be another unit in the last place.
inline void tame_chunk(const double* x, double* y, ptrdiff_t n, Rate<double> rate, Scale<double> scale) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = scaled(power<double>(x[i], rate), scale);
}

[[gnu::always_inline]] inline void scale_with_tails(double* y, const double* tail, ptrdiff_t n, Scale<double> scale) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = scaled(Power<double>{y[i], tail[i]}, scale);
}

inline bool tame_softmax_row(const double* x, double* y, ptrdiff_t n, Rate<double> rate, int threads) {
    if (x != y && n <= chunk) {
        double tails[chunk];
        TameSum<double, false> row(x, y, n, rate, 1, tails);
        if (row.tame) scale_with_tails(y, tails, n, Scale<double>(reciprocal(row.sum)));
        return row.tame;
    }
    TameSum<double, false> row(x, nullptr, n, rate, threads);
    if (!row.tame) return false;
    Scale<double> scale(reciprocal(row.sum));
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) { tame_chunk(x + from, y + from, length, rate, scale); });
    return true;
}

template <class T>
void softmax_chunk(const T* x, T* y, ptrdiff_t n, Shift<T> shift, Rate<T> rate, Scale<T> scale) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = scaled(power<T>(x[i], shift, rate), scale);
}

// y = exp(x / T) / sum, the powers computed anew.
template <class T>
void softmax_of(const T* x, T* y, ptrdiff_t n, Shift<T> shift, Rate<T> rate, Pair sum, int threads) {
    Scale<T> scale(reciprocal(sum));
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        softmax_chunk(x + from, y + from, length, shift, rate, scale);
    });
}

inline void softmax_row(const double* x, double* y, ptrdiff_t n, double m, Rate<double> rate, int threads) {
    Shift<double> shift(m, rate);
    double* none = nullptr;
    softmax_of(x, y, n, shift, rate, sum_of_powers<NOTHING, double>(x, none, n, m, shift, rate, threads), threads);
}

// max(x), and log(sum(exp((x - max(x)) / T))), of a tame row without a term that outweighs all others.
template <class T>
struct TameLog {
    T max;
    Pair log;
    bool tame;

    TameLog(const T* x, ptrdiff_t n, Rate<T> rate, int threads) {
        T* none = nullptr;
        TameSum<T, true> row(x, none, n, rate, threads);
        max = row.largest;
        tame = row.tame;
        if (!tame) return;
        Power<T> top = power<T>(max, rate);
        tame = !outweighs(top, row.sum.high);
        if (tame) log = log_of<T>(row.sum, 0, top);
    }
};

template <class T>
ptrdiff_t count_equal(const T* x, ptrdiff_t n, T m) {
    ptrdiff_t equal = 0;
#pragma omp simd reduction(+ : equal)
    for (ptrdiff_t i = 0; i < n; ++i) equal += x[i] == m;
    return equal;
}

// Adds a row, or a part of it, to its partition.
template <class T>
void add_to(Partition& p, const T* x, ptrdiff_t n, Shift<T> shift, Rate<T> rate, int threads) {
    T m = static_cast<T>(p.max), *none = nullptr;
    Pair others = sum_of_powers<LARGEST, T>(x, none, n, m, shift, rate, threads);
    accumulate(p.others, p.low, others.high, others.low);
    add_chunks(n, threads,
        [=](ptrdiff_t from, ptrdiff_t length) { return count_equal(x + from, length, m); },
        [&](ptrdiff_t equal) { p.equal += static_cast<double>(equal); });
}

// log(sum(exp((x - m) / T))) of a row.
template <class T>
Pair log_of_rest(const T* x, ptrdiff_t n, T m, Rate<T> rate, int threads) {
    Shift<T> shift(m, rate);
    Partition p{m, 0, 0, 0};
    add_to(p, x, n, shift, rate, threads);
    return log_of<T>({p.others, p.low}, p.equal, power<T>(m, shift, rate));
}

template <class T>
void log_softmax_chunk(const T* x, T* y, ptrdiff_t n, T m, Inverse<T> inverse, T log) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = log_probability<T>(x[i], m, inverse, log);
}

template <class T>
void log_softmax_of(const T* x, T* y, ptrdiff_t n, T m, Inverse<T> inverse, Pair log_of_rest, int threads) {
    T log = static_cast<T>(rounded(log_of_rest));
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        log_softmax_chunk(x + from, y + from, length, m, inverse, log);
    });
}

template <class T>
void softmax_part(const T* x, T* y, ptrdiff_t n, const Partition& p, Rate<T> rate, int threads) {
    T m = static_cast<T>(p.max);
    Shift<T> shift(m, rate);
    Power<T> largest = power<T>(m, shift, rate);
    Pair sum{p.others, p.low};
    double e = largest.value, product = p.equal * e;
    accumulate(sum.high, sum.low, product, fma(p.equal, e, -product) + p.equal * largest.tail);
    softmax_of(x, y, n, shift, rate, sum, threads);
}

template <class T>
void log_softmax_part(const T* x, T* y, ptrdiff_t n, const Partition& p, Rate<T> rate, Inverse<T> inverse, int threads) {
    T m = static_cast<T>(p.max);
    Power<T> largest = power<T>(m, Shift<T>(m, rate), rate);
    log_softmax_of(x, y, n, m, inverse, log_of<T>({p.others, p.low}, p.equal, largest), threads);
}

}  // namespace
