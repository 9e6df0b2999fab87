// One row at a time, for rows of any length: passes of plain loops over its elements, which threads may share.
#pragma once
#include <atomic>

#include "log.h"
#include "kernels.h"
#include "threads.h"

namespace {

constexpr ptrdiff_t lanes = 16;   // element j is summed in lane j % 16, on every instruction set
constexpr ptrdiff_t block = 512;  // stays in the first-level cache

// Asks for elements that will be needed in a while, to read or to write: the processor's own foresight ends with a page. An
// address beyond the array does no harm.
template <bool to_write, class T>
[[gnu::always_inline]] inline void fetch(const T* x, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += 64 / sizeof(T)) __builtin_prefetch(x + i, to_write);
}

template <class T>
[[gnu::always_inline]] inline void keep_larger(T* m, const T* x, ptrdiff_t n) {
#pragma omp simd
    for (ptrdiff_t l = 0; l < n; ++l) m[l] = x[l] > m[l] ? x[l] : m[l];
}

// Bytes of a vector: loops over fewer columns are not vectorised, and slow.
#if defined(__AVX512F__)
constexpr ptrdiff_t vector_size = 64;
#elif defined(__AVX2__)
constexpr ptrdiff_t vector_size = 32;
#else
constexpr ptrdiff_t vector_size = 16;
#endif

// The largest of 2 * half elements, in m[0]: a template, since a loop over `half` stays one and is slow.
template <ptrdiff_t half, class T>
[[gnu::always_inline]] inline void fold_maximum(T* m) {
    keep_larger(m, m + half, half);
    if constexpr (half > 1) fold_maximum<half / 2>(m);
}

// Adds up 2 * half elements, in x[0].
template <ptrdiff_t half, class T>
[[gnu::always_inline]] inline void fold_sum(T* x) {
#pragma omp simd
    for (ptrdiff_t l = 0; l < half; ++l) x[l] += x[l + half];
    if constexpr (half > 1) fold_sum<half / 2>(x);
}

// The largest element, NaN passed over.
template <class T>
T maximum(const T* x, ptrdiff_t n) {
    constexpr ptrdiff_t width = 4 * lanes;
    T m[width];
    for (ptrdiff_t l = 0; l < width; ++l) m[l] = -std::numeric_limits<T>::infinity();
    ptrdiff_t i = 0;
    for (; i + width <= n; i += width) {
        fetch<false>(x + i + block, width);
        keep_larger(m, x + i, width);
    }
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

// The sum of 2 * half lanes.
template <class Result, ptrdiff_t half = lanes / 2, class T>
[[gnu::always_inline]] inline Pair total_of(double* high, T* low) {
#pragma omp simd
    for (ptrdiff_t l = 0; l < half; ++l) add_term<Result>(high[l], low[l], high[l + half], low[l + half]);
    if constexpr (half > 1) return total_of<Result, half / 2>(high, low);
    return {high[0], low[0]};
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
    Pair total() { return total_of<Result>(high, low); }
};

template <class T>
T maximum(const T* x, ptrdiff_t n, int threads) {
    T m = -std::numeric_limits<T>::infinity();
    add_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) { return maximum(x + from, length); },
               [&](T part) { keep_larger(&m, &part, 1); });
    return m;
}

// The terms of a sum of powers: of a tame row all; of any row, relative to its maximum, all, or those of elements below it.
enum Terms { TAME, ALL, SMALLER };

template <class T>
struct Sum {
    Pair sum{0, 0};
    bool tame = true;
    T largest = -std::numeric_limits<T>::infinity();

    void add(const Sum& part) {
        accumulate(sum.high, sum.low, part.sum.high, part.sum.low);
        keep_larger(&largest, &part.largest, 1);
        tame = tame && part.tame;
    }
};

// Sixteen powers, or the first n of them, each to its lane.
template <Terms terms, bool whole, bool stores, bool has_tails, bool with_largest, class Result, class T>
[[gnu::always_inline]] inline void add_powers(const T* x, T* y, T* tails, ptrdiff_t n, T m, Shift<T> shift, Rate<T> rate,
                                              double* high, T* low, T* largest, Magnitude<T>* farthest) {
#pragma omp simd
    for (ptrdiff_t l = 0; l < lanes; ++l) {
        bool exists = whole || l < n;
        T v = exists ? x[l] : 0, e, tail;
        if (with_largest && exists) largest[l] = v > largest[l] ? v : largest[l];
        if constexpr (terms == TAME) {
            Magnitude<T> far = magnitude(v);
            farthest[l] = far > farthest[l] ? far : farthest[l];
            put(e, tail, power<Result>(v, rate));
        } else {
            put(e, tail, power<Result>(v, shift, rate));
        }
        bool counts = exists && (terms != SMALLER || v != m);
        e = counts ? e : 0, tail = counts ? tail : 0;
        if (stores && exists) y[l] = e;
        if (has_tails && exists) tails[l] = tail;
        add_term<Result>(high[l], low[l], e, tail);
    }
}

// The sum of exp(x / T) / 2^K of a chunk; of a TAME one it ends early where the row is not, which `tame` tells.
template <Terms terms, bool stores, bool has_tails, bool with_largest, class Result, class T>
[[gnu::always_inline]] inline Sum<T> sum_of_chunk(const T* x, T* y, T* tails, ptrdiff_t n, T m, Shift<T> shift, Rate<T> rate) {
    Sum<T> result;
    double high[lanes] = {};
    T low[lanes] = {}, largest[lanes];
    Magnitude<T> farthest[lanes] = {};
    for (ptrdiff_t l = 0; l < lanes; ++l) largest[l] = result.largest;
    auto add = [&](auto whole, ptrdiff_t i, ptrdiff_t n) __attribute__((always_inline)) {
        add_powers<terms, whole, stores, has_tails, with_largest, Result>(
            x + i, stores ? y + i : y, has_tails ? tails + i : tails, n, m, shift, rate, high, low, largest, farthest);
    };
    for (ptrdiff_t i = 0; i < n && result.tame;) {
        ptrdiff_t end = std::min(i + block, n);
        for (; i + lanes <= end; i += lanes) {
            fetch<false>(x + i + block, lanes);
            if (stores) fetch<true>(y + i + block, lanes);
            add(std::true_type(), i, lanes);
        }
        if (i < end) add(std::false_type(), i, end - i);
        i = end;
        if (terms != TAME) continue;
        fold_maximum<lanes / 2>(farthest);
        result.tame = farthest[0] <= magnitude(rate.tame);
    }
    if (with_largest) fold_maximum<lanes / 2>(largest), result.largest = largest[0];
    result.sum = total_of<Result>(high, low);
    return result;
}

// With `y`, the terms are stored there, and with `tails` their tails.
template <Terms terms, bool with_largest, class Result, class T>
[[gnu::always_inline]] inline Sum<T> sum_of_chunk(const T* x, T* y, T* tails, ptrdiff_t n, T m, Shift<T> shift, Rate<T> rate) {
    if (y && tails) return sum_of_chunk<terms, true, true, with_largest, Result>(x, y, tails, n, m, shift, rate);
    if (y) return sum_of_chunk<terms, true, false, with_largest, Result>(x, y, tails, n, m, shift, rate);
    return sum_of_chunk<terms, false, false, with_largest, Result>(x, y, tails, n, m, shift, rate);
}

// The same of a row.
template <Terms terms, bool with_largest, class Result, class T>
[[gnu::always_inline]] inline Sum<T> sum_of_row(const T* x, T* y, T* tails, ptrdiff_t n, T m, Shift<T> shift, Rate<T> rate,
                                                int threads) {
    Sum<T> row;
    if (n <= chunk) {
        row = sum_of_chunk<terms, with_largest, Result>(x, y, tails, n, m, shift, rate);
    } else {
        std::atomic<bool> go_on = true;
        add_chunks(n, threads,
            [&](ptrdiff_t from, ptrdiff_t length) {
                if (!go_on.load(std::memory_order_relaxed)) length = 0;
                return sum_of_chunk<terms, with_largest, Result>(x + from, y ? y + from : y, tails ? tails + from : tails, length, m, shift, rate);
            },
            [&](const Sum<T>& part) {
                row.add(part);
                if (!part.tame) go_on.store(false, std::memory_order_relaxed);
            });
    }
    if (terms == TAME) row.tame = row.tame && row.sum.high < Format<T>::tame_sum;
    return row;
}

template <bool with_largest, class Result, class T>
Sum<T> tame_sum(const T* x, T* y, T* tails, ptrdiff_t n, Rate<T> rate, int threads) {
    Sum<T> wild{{0, 0}, false};
    if (farthest(x, std::min(n, lanes)) > magnitude(rate.tame)) return wild;  // most rows that are not tame show it at once
    return sum_of_row<TAME, with_largest, Result>(x, y, tails, n, T(0), Shift<T>::none(), rate, threads);
}

// Of a row with maximum m.
template <Terms terms, class Result, class T>
Pair sum_of_powers(const T* x, T* y, ptrdiff_t n, T m, Shift<T> shift, Rate<T> rate, int threads) {
    T* no_tails = nullptr;
    return sum_of_row<terms, false, Result>(x, y, no_tails, n, m, shift, rate, threads).sum;
}

// The powers of a row are stored where its result will be. (A function of its own for each chunk, not a lambda: what that
// captures might change with every store, and the loop would not vectorise.)
inline void scale_chunk(const float* e, const float*, float* y, ptrdiff_t n, Scale<float> scale) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = scaled(Power<float>{e[i], 0}, scale);
}

// Of float64 their tails are needed as well: without, it would be another unit in the last place.
inline void scale_chunk(const double* e, const double* tails, double* y, ptrdiff_t n, Scale<double> scale) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = scaled(Power<double>{e[i], tails[i]}, scale);
}

template <class T>
void scale_row(const T* e, const T* tails, T* y, ptrdiff_t n, Pair sum, int threads) {
    Scale<T> scale(reciprocal(sum));
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        scale_chunk(e + from, tails ? tails + from : tails, y + from, length, scale);
    });
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

template <class T>
constexpr bool has_tails = sizeof(T) == 8;

// Of any row with maximum m. Where its tails are needed and have no place, the powers are computed twice.
template <class T>
void softmax_row(const T* x, T* y, T* tails, ptrdiff_t n, T m, Rate<T> rate, int threads) {
    Shift<T> shift(m, rate);
    T* e = tails || !has_tails<T> ? y : nullptr;
    Pair sum = sum_of_row<ALL, false, T>(x, e, tails, n, m, shift, rate, threads).sum;
    if (e) scale_row(e, tails, y, n, sum, threads);
    else softmax_of(x, y, n, shift, rate, sum, threads);
}

// Tame rows, some at a time: first the sums of all, then the results, since a sum takes a while to become a scale.
template <class T>
class TameRows {
    static constexpr ptrdiff_t size = 2048;  // elements
    alignas(64) T in_place[size], tails_of_chunk[has_tails<T> ? chunk : 1];
    T* tails;
    Pair sum[size / 64];

public:
    bool tame[size / 64];

    // Of rows longer than a chunk the tails go to scratch, if there is some.
    TameRows(ptrdiff_t n, T* scratch) : tails(!has_tails<T> ? nullptr : n <= chunk ? tails_of_chunk : scratch) {}
    static ptrdiff_t at_a_time(ptrdiff_t n) { return std::max<ptrdiff_t>(1, size / n); }
    T* tails_of(ptrdiff_t row, ptrdiff_t n) { return tails ? tails + row * n : nullptr; }

    // Where powers are kept, if they are.
    T* powers(const T* x, T* y, ptrdiff_t n) {
        if (x == y && n <= size) return in_place;
        return tails || !has_tails<T> ? y : nullptr;
    }

    void sum_up(const T* x, T* e, ptrdiff_t rows, ptrdiff_t n, Rate<T> rate, int threads) {
        for (ptrdiff_t r = 0; r < rows; ++r) {
            ptrdiff_t at = r * n;
            tame[r] = e != x;  // which is needed still, should the row not be tame
            if (!tame[r]) continue;
            Sum<T> row = tame_sum<false, T>(x + at, e ? e + at : e, e ? tails_of(r, n) : nullptr, n, rate, threads);
            sum[r] = row.sum, tame[r] = row.tame;
        }
    }

    void result(ptrdiff_t r, const T* x, const T* e, T* y, ptrdiff_t n, Rate<T> rate, int threads) {
        if (e) scale_row(e + r * n, tails_of(r, n), y, n, sum[r], threads);
        else softmax_of(x, y, n, Shift<T>::none(), rate, sum[r], threads);
    }
};

// max(x), and log(sum(exp((x - max(x)) / T))), of a tame row without a term that outweighs all others.
template <class T>
struct TameLog {
    T max;
    Pair log;
    bool tame;

    TameLog(const T* x, ptrdiff_t n, Rate<T> rate, int threads) {
        T* none = nullptr;
        Sum<T> row = tame_sum<true, T>(x, none, none, n, rate, threads);
        max = row.largest;
        tame = row.tame;
        if (!tame) return;
        Power<T> top = power<T>(max, rate);
        tame = !outweighs<T>(top, row.sum.high);
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
    Pair others = sum_of_powers<SMALLER, T>(x, none, n, m, shift, rate, threads);
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
    constexpr ptrdiff_t strip = 64;
    for (ptrdiff_t from = 0, end; from < n; from = end) {
        end = std::min(n, from + strip);
        fetch<true>(y + from + block, strip);
#pragma omp simd
        for (ptrdiff_t i = from; i < end; ++i) y[i] = log_probability<T>(x[i], m, inverse, log);
    }
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
