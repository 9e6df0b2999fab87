// Products of a vector with the Jacobian of log_softmax, from the probabilities p: v - p * sum(v), without cancellation. Where p is
// 0, as of masked elements, the vector does not count, and the result is 0.
#pragma once
#include "products.h"

namespace {

// The sums of the v and the p that are no peaks; how many peaks there are, and where, if there is one.
struct Others {
    Pair v{0, 0}, p{0, 0};
    ptrdiff_t peaks = 0, k = 0;

    // Those of the elements from `from` on; the first are not added to 0, where infinite ones would become NaN.
    void add(const Others& part, ptrdiff_t from) {
        if (from == 0) return void(*this = part);
        accumulate(v.high, v.low, part.v.high, part.v.low);
        accumulate(p.high, p.low, part.p.high, part.p.low);
        if (part.peaks) peaks += part.peaks, k = from + part.k;
    }
};

// In the bits below, the index of a peak in a chunk, above them how many there are.
template <class T>
using Peaks = std::make_signed_t<typename Format<T>::Bits>;
constexpr int index_bits = 16;
constexpr int one_peak = 1 << index_bits;

// 0, or v, by its bits: of a choice GCC makes one between the doubles that become of it, twice as many. With AVX-512 those are free.
template <class T>
[[gnu::always_inline]] inline T zero_or(bool is_zero, T v) {
    if constexpr (vector_size == 64) return is_zero ? 0 : v;
    using Bits = Peaks<T>;
    return std::bit_cast<T>(static_cast<Bits>(std::bit_cast<Bits>(v) & (is_zero ? 0 : -1)));
}

// Adds to these sums the i-th element; a p of 0 leaves its v out.
template <class T>
[[gnu::always_inline]] inline void add_other(double& v_high, double& v_low, double& p_high, double& p_low, Peaks<T>& peaks, T p, T v,
                                             Peaks<T> i) {
    T other = zero_or(p > peak<T>, p), of_other = zero_or(other == 0, v);
    add_term<T>(v_high, v_low, static_cast<double>(of_other), 0.0);
    add_term<T>(p_high, p_low, static_cast<double>(other), 0.0);
    peaks += (p > peak<T> ? -1 : 0) & (one_peak + i);
}

enum Summed { ONLY_V, ONLY_P, BOTH };

// In lanes of a vector or more, what is left over in the last of them. Of only the v there must be no peaks.
template <Summed what, class T>
[[gnu::always_inline]] inline Others sums_of_others(const T* p, const T* v, ptrdiff_t n) {
    double v_high[lanes], v_low[lanes], p_high[lanes], p_low[lanes];
    Peaks<T> peaks[lanes], i = lanes, end = static_cast<Peaks<T>>(n);
    auto add = [&](Peaks<T> l, T p, T v, Peaks<T> i) __attribute__((always_inline)) {
        if constexpr (what == BOTH) add_other(v_high[l], v_low[l], p_high[l], p_low[l], peaks[l], p, v, i);
        else if constexpr (what == ONLY_V) add_term<T>(v_high[l], v_low[l], static_cast<double>(counted(p, v)), 0.0);
        else add_term<T>(p_high[l], p_low[l], static_cast<double>(zero_or(p > peak<T>, p)), 0.0);
    };
#pragma omp simd
    for (Peaks<T> l = 0; l < lanes; ++l) {
        v_high[l] = v_low[l] = p_high[l] = p_low[l] = 0, peaks[l] = 0;
        add(l, p[l], v[l], l);
    }
    for (; i + lanes <= end; i += lanes) {
        fetch<false>(p + i + block, lanes);
        fetch<false>(v + i + block, lanes);
#pragma omp simd
        for (Peaks<T> l = 0; l < lanes; ++l) add(l, p[i + l], v[i + l], i + l);
    }
    if (i < end) {
        Peaks<T> last = end - lanes, again = i - last;
#pragma omp simd
        for (Peaks<T> l = 0; l < lanes; ++l) add(l, l < again ? T(0) : p[last + l], v[last + l], last + l);
    }
    if (what == ONLY_V) return {total<T>(v_high, v_low)};
    if (what == ONLY_P) return {{0, 0}, total<T>(p_high, p_low)};
    fold_sum<lanes / 2>(peaks);
    ptrdiff_t count = peaks[0] >> index_bits;
    return {total<T>(v_high, v_low), total<T>(p_high, p_low), count, count == 1 ? peaks[0] & (one_peak - 1) : 0};
}

// Of up to a chunk; without peaks the sum of the p is not asked for.
template <class T>
Others others(const T* p, const T* v, ptrdiff_t n) {
    if (n >= lanes) return maximum(p, n) > peak<T> ? sums_of_others<BOTH>(p, v, n) : sums_of_others<ONLY_V>(p, v, n);
    T last_p[lanes] = {}, last_v[lanes] = {};
    std::copy_n(p, n, last_p + lanes - n), std::copy_n(v, n, last_v + lanes - n);
    Others all = sums_of_others<BOTH>(last_p, last_v, lanes);
    if (all.peaks == 1) all.k -= lanes - n;
    return all;
}

// The sum of the p alone, which is asked for where another chunk has a peak.
template <class T>
Pair sum_of_other_p(const T* p, ptrdiff_t n) {
    return n >= lanes ? sums_of_others<ONLY_P>(p, p, n).p : others(p, p, n).p;
}

template <class T>
Others others(const T* p, const T* v, ptrdiff_t n, int threads) {
    if (n <= chunk) return others(p, v, n);
    Others all;
    ptrdiff_t at = 0;
    add_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) { return others(p + from, v + from, length); },
               [&](const Others& part) { all.add(part, at), at += chunk; });
    if (all.peaks) all.p = sum_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) { return sum_of_other_p(p + from, length); });
    return all;
}

// The sum of all v.
template <class T>
Pair sum_of_counted(const T* p, const T* v, ptrdiff_t n, int threads) {
    return sum_chunks(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        return sum_of<T>(length, [=](ptrdiff_t i) { return Term<T>(counted(p[from + i], v[from + i]), 1); });
    });
}

// One element: v - p * sum(v), 0 where p is. The sums of float32 have no low part.
template <class Result, class T>
[[gnu::always_inline]] inline Result less_share(T p, T v, T sum, T sum_low) {
    T y = fma(-p, sum, v);
    if constexpr (sizeof(Result) == 8) y -= p * sum_low;
    return p == 0 ? 0 : static_cast<Result>(y);
}

// At a peak: (sum of the other p) * v - p * (sum of the other v).
[[gnu::always_inline]] inline double at_peak(double p, double v, double others_p, double others_v) { return others_p * v - p * others_v; }

template <class T>
void less_share_chunk(const T* p, const T* v, T* y, ptrdiff_t n, T sum, T sum_low) {
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = less_share<T>(p[i], v[i], sum, sum_low);
}

// The sum of all v, and what the only peak there is becomes.
template <class T>
struct Shares {
    Pair sum;
    T of_peak;
    [[gnu::always_inline]] Shares(const Others& all, double p_k, double v_k) : sum(all.v) {
        add_term<T>(sum.high, sum.low, all.peaks ? v_k : 0, 0.0);
        of_peak = static_cast<T>(at_peak(p_k, v_k, rounded(all.p), rounded(all.v)));
    }
};

template <class T>
void log_softmax_vjp(const T* p, const T* v, T* y, ptrdiff_t n, int threads, bool streams) {
    Others all = others(p, v, n, threads);
    Shares<T> shares(all, p[all.k], v[all.k]);
    if (all.peaks > 1) shares.sum = sum_of_counted(p, v, n, threads);  // no probabilities
    T high = static_cast<T>(shares.sum.high), low = static_cast<T>(shares.sum.low);
    each_chunk(n, threads, [=](ptrdiff_t from, ptrdiff_t length) {
        auto ps = p + from, vs = v + from;
        if (!streams || n < long_product) return less_share_chunk(ps, vs, y + from, length, high, low);
        stream_product<T>(nullptr, ps, vs, y + from, length, [=](ptrdiff_t i) { return less_share<T>(ps[i], vs[i], high, low); });
    });
    if (all.peaks == 1) y[all.k] = shares.of_peak;
}

// Of short rows.
template <class T>
void short_log_products(const T* p, const T* v, T* y, ptrdiff_t n, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; ++i, p += n, v += n, y += n) {
        Others all = sums_of_others<BOTH>(p, v, n);
        Shares<T> shares(all, p[all.k], v[all.k]);
        if (all.peaks > 1) shares.sum = sum_of_counted(p, v, n, 1);
        less_share_chunk(p, v, y, n, static_cast<T>(shares.sum.high), static_cast<T>(shares.sum.low));
        y[all.k] = all.peaks == 1 ? shares.of_peak : y[all.k];
    }
}

}  // namespace
