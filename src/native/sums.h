// Maxima and sums of a row, of any length: passes of plain loops over its elements, in lanes, which threads may share.
#pragma once
#include <atomic>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "exp2.h"
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

// 16 elements as doubles: where they are, or in `own`. (With AVX2 floats are converted from memory: loops load whole vectors of them,
// and take three instructions for half of one. With AVX-512 that is no faster.)
[[gnu::always_inline]] inline const double* as_doubles(const double* x, double*) { return x; }
[[gnu::always_inline]] inline const double* as_doubles(const float* x, double* own) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    for (ptrdiff_t l = 0; l < lanes; l += 4) _mm256_storeu_pd(own + l, _mm256_cvtps_pd(_mm_loadu_ps(x + l)));
#else
#pragma omp simd
    for (ptrdiff_t l = 0; l < lanes; ++l) own[l] = x[l];
#endif
    return own;
}

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
    if constexpr (sizeof(Result) < 8) {  // each by itself: two and one of both would not be vectors
        fold_sum<half>(high), fold_sum<half>(low);
    } else {
#pragma omp simd
        for (ptrdiff_t l = 0; l < half; ++l) add_term<Result>(high[l], low[l], high[l + half], low[l + half]);
        if constexpr (half > 1) return total_of<Result, half / 2>(high, low);
    }
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
            double own[lanes];
            const double* of = as_doubles(e + i, own);
#pragma omp simd
            for (ptrdiff_t l = 0; l < lanes; ++l) add(l, of[l], tail[i + l]);
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
    // Of elements that are not m.
    void add_others(const T* e, const T* tail, const T* x, ptrdiff_t n, T m) {
        for (ptrdiff_t i = 0; i < n; i += lanes) {
            ptrdiff_t end = std::min(lanes, n - i);
#pragma omp simd
            for (ptrdiff_t l = 0; l < end; ++l) add(l, x[i + l] == m ? 0 : e[i + l], x[i + l] == m ? 0 : tail[i + l]);
        }
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

// exp((x - max) / T) * 2^-K; of a TAME row exp(x / T), without a shift.
template <class Result, Terms terms, class T>
[[gnu::always_inline]] inline Power<T> power_of(T x, Shift<T> shift, Rate<T> rate) {
    if constexpr (terms == TAME) return power<Result>(x, rate);
    else return power<Result>(x, shift, rate);
}

template <class Result, Terms terms, class T, ptrdiff_t size>
[[gnu::always_inline]] inline Reduced<T> reduced_of(T x, const Shifts<T, size>& shift, ptrdiff_t i, Rate<T> rate) {
    if constexpr (terms == TAME) return reduced<Result>(x, rate);
    else return reduced<Result>(x, Shift<T>(shift.c[i], shift.limit[i], shift.bias[i]), rate);
}

template <class Result, Terms terms, class T, ptrdiff_t size>
[[gnu::always_inline]] inline Power<T> power_of(T x, const Shifts<T, size>& shift, ptrdiff_t i, Rate<T> rate) {
    return power<Result>(reduced_of<Result, terms>(x, shift, i, rate));
}

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

// Whether the sum of all n terms does not tell that of the others than the largest well enough: it may lose 4 bits for a result of 16;
// of float32, whose low parts are floats, each term that is added to the same lane within a chunk may cost 2^-50 of the largest.
template <class Result, class T>
[[gnu::always_inline]] inline bool outweighs(Power<T> largest, double sum, ptrdiff_t n) {
    double of_float = static_cast<double>(std::min(n, chunk)) / lanes * 0x1p-24;
    double least = sizeof(Result) == 8 ? 0x1p-40 : sizeof(Result) == 4 ? of_float : 0x1p-4;
    return !(sum >= (1 + least) * largest.value);
}

// Whether float32 powers are added up in a loop of their own: AVX2 converts them from memory faster than in registers.
template <class Result, class T>
constexpr bool are_added_later = vector_size == 32 && sizeof(T) == 4 && sizeof(Result) == 4;

// Adds 2^(r + rest) * scale = e + tail * scale to high + low; where e is added `later`, only the rest of it.
template <class Result, bool later, class T>
[[gnu::always_inline]] inline void add_power(double& high, T& low, T& e, T& tail, T r, T rest, T scale) {
    put(e, tail, power_of_two<Result>(r, rest));
    e *= scale;
    if constexpr (later) low = fma(tail, scale, low);
    else add_term<Result>(high, low, e, tail, scale);
}

// What is on its way from elements to the sum of their powers: they are reduced, then added. With AVX-512 the next ones are reduced in
// between, for a power is a chain of twenty instructions that each wait for the one before.
constexpr bool is_ahead = vector_size == 64;
template <class T>
constexpr ptrdiff_t step = is_ahead ? vector_size / sizeof(T) : lanes;

template <class T>
struct Reduction {
    T r[step<T>], rest[step<T>], scale[step<T>];
};

// The same in registers: what one turn of a loop leaves in an array for the next would be in memory.
template <class T>
struct Kept {
    using Vector [[gnu::vector_size(step<T> * sizeof(T))]] = T;
    Vector r, rest, scale;

    [[gnu::always_inline]] void put(const Reduction<T>& d) {
        __builtin_memcpy(&r, d.r, sizeof r), __builtin_memcpy(&rest, d.rest, sizeof r), __builtin_memcpy(&scale, d.scale, sizeof r);
    }
    [[gnu::always_inline]] void get(Reduction<T>& d) const {
        __builtin_memcpy(d.r, &r, sizeof r), __builtin_memcpy(d.rest, &rest, sizeof r), __builtin_memcpy(d.scale, &scale, sizeof r);
    }
};

// Elements, or the first n of them; m is the maximum, of a TAME row 0.
template <Terms terms, bool whole, bool with_largest, class Result, class T>
[[gnu::always_inline]] inline void reduce_some(const T* x, Reduction<T>& to, ptrdiff_t n, T m, Shift<T> shift, Rate<T> rate,
                                               T* largest, Magnitude<T>* farthest) {
#pragma omp simd
    for (ptrdiff_t l = 0; l < step<T>; ++l) {
        bool exists = whole || l < n;
        T v = exists ? x[l] : m, r, rest, scale;
        if (with_largest && exists) largest[l] = v > largest[l] ? v : largest[l];
        if constexpr (terms == TAME) {
            Magnitude<T> far = magnitude(v);
            farthest[l] = far > farthest[l] ? far : farthest[l];
            put(r, rest, scale, reduced<Result>(v, rate));
        } else {
            put(r, rest, scale, reduced<Result>(v, shift, rate));
        }
        bool counts = exists && (terms != SMALLER || v != m);
        to.r[l] = r, to.rest[l] = rest, to.scale[l] = counts ? scale : 0;
    }
}

// Each to its lane.
template <bool whole, bool stores, bool has_tails, class Result, class T>
[[gnu::always_inline]] inline void add_some(const Reduction<T>& of, T* y, T* tails, ptrdiff_t n, double* high, T* low) {
#pragma omp simd
    for (ptrdiff_t l = 0; l < step<T>; ++l) {
        T e, tail;
        add_power<Result, whole && are_added_later<Result, T>>(high[l], low[l], e, tail, of.r[l], of.rest[l], of.scale[l]);
        if (stores && (whole || l < n)) y[l] = e;
        if (has_tails && (whole || l < n)) tails[l] = tail * of.scale[l];
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
    constexpr bool later = are_added_later<Result, T>;
    T of_block[later && !stores ? block : 1];
    auto reduce = [&](auto whole, ptrdiff_t i, ptrdiff_t lane, Reduction<T>& d) __attribute__((always_inline)) {
        reduce_some<terms, whole, with_largest, Result>(x + i, d, n - i, m, shift, rate, largest + lane, farthest + lane);
    };
    auto add = [&](auto whole, ptrdiff_t i, ptrdiff_t lane, const Reduction<T>& d) __attribute__((always_inline)) {
        T* to = stores ? y + i : later ? of_block + i % block : y;
        add_some<whole, stores || later, has_tails, Result>(d, to, has_tails ? tails + i : tails, n - i, high + lane, low + lane);
    };
    Kept<T> next;
    auto reduce_next = [&](ptrdiff_t i, ptrdiff_t lane) __attribute__((always_inline)) {
        Reduction<T> d;
        reduce(std::true_type(), i, lane, d);
        next.put(d);
    };
    auto is_tame = [&] {
        Magnitude<T> m[lanes];  // a copy: these lanes stay in registers
        std::copy_n(farthest, lanes, m);
        fold_maximum<lanes / 2>(m);
        return m[0] <= magnitude(rate.tame);
    };
    ptrdiff_t whole = n / lanes * lanes, i = 0;
    if (is_ahead && whole > 0) reduce_next(0, 0);
    while (i < whole) {
        ptrdiff_t end = std::min(i + block, whole), from = i;
        for (; i < end; i += lanes) {
            fetch<false>(x + i + block, lanes);
            if (stores) fetch<true>(y + i + block, lanes);
            for (ptrdiff_t l = 0; l < lanes; l += step<T>) {
                Reduction<T> d;
                if constexpr (is_ahead) {
                    next.get(d);
                    reduce_next(std::min(i + l + step<T>, whole - step<T>), (l + step<T>) % lanes);
                } else {
                    reduce(std::true_type(), i, l, d);
                }
                add(std::true_type(), i + l, l, d);
            }
        }
        if constexpr (later) {
            const T* e = stores ? y + from : of_block;
            for (ptrdiff_t j = 0; j < i - from; j += lanes) {
                double own[lanes];
                const double* of = as_doubles(e + j, own);
#pragma omp simd
                for (ptrdiff_t l = 0; l < lanes; ++l) high[l] += of[l];
            }
        }
        if (terms == TAME && i < whole && !is_tame()) return {{0, 0}, false};
    }
    for (ptrdiff_t l = 0; l < lanes; l += step<T>) {
        if (i + l >= n) break;
        Reduction<T> d;
        reduce(std::false_type(), i + l, l, d);
        add(std::false_type(), i + l, l, d);
    }
    if (terms == TAME) result.tame = is_tame();
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
                T *to = y ? y + from : y, *tails_to = tails ? tails + from : tails;
                auto part = sum_of_chunk<terms, with_largest, Result>(x + from, to, tails_to, length, m, shift, rate);
                if (!part.tame) go_on.store(false, std::memory_order_relaxed);
                return part;
            },
            [&](const Sum<T>& part) { row.add(part); });
    }
    if (terms == TAME) row.tame = row.tame && row.sum.high < Format<T>::tame_sum;
    return row;
}

template <bool with_largest, class Result, class T>
[[gnu::always_inline]] inline Sum<T> tame_sum(const T* x, T* y, T* tails, ptrdiff_t n, Rate<T> rate, int threads) {
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

}  // namespace
