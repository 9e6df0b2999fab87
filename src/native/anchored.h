// Sums of p * (v - v_k) in float64, to beyond its last bit: from an anchor on, a number so large that what rounding takes from the sum
// is had by one subtraction, where a two-sum needs six operations (see ExtractVector in Rump, Ogita and Oishi, Accurate
// floating-point summation, part I).
//
// How large it should be is a guess, from a few elements. Whether it was a good one shows in the end; if not, there is no sum.
#pragma once
#include "sums.h"

namespace {

// A number of about the size of p, larger for the earlier of two alike, with its index (in a chunk) in its last bits.
[[gnu::always_inline]] inline double with_index(double p, uint64_t i) {
    constexpr uint64_t last = chunk - 1;
    return std::bit_cast<double>((std::bit_cast<uint64_t>(p) & ~last) | (last - i));
}
inline ptrdiff_t index_of(double key) { return chunk - 1 - static_cast<ptrdiff_t>(std::bit_cast<uint64_t>(key) & (chunk - 1)); }
constexpr double no_index = -std::numeric_limits<double>::infinity();

// The largest, or nearly so, of up to a chunk of elements, with its index; NaN is passed over.
inline double largest_with_index(const double* p, ptrdiff_t n) {
    double m[lanes];
    std::fill_n(m, lanes, no_index);
    uint64_t i = 0, end = static_cast<uint64_t>(n);
    for (; i + lanes <= end; i += lanes) {
        fetch<false>(p + i + block, lanes);
#pragma omp simd
        for (uint64_t l = 0; l < lanes; ++l) {
            double key = with_index(p[i + l], i + l);
            m[l] = key > m[l] ? key : m[l];
        }
    }
    if (i < end && end >= lanes) {
        uint64_t from = end - lanes, again = i - from;
#pragma omp simd
        for (uint64_t l = 0; l < lanes; ++l) {
            double key = l < again ? no_index : with_index(p[from + l], from + l);
            m[l] = key > m[l] ? key : m[l];
        }
    } else {
        for (; i < end; ++i) m[i % lanes] = std::max(m[i % lanes], with_index(p[i], i));
    }
    fold_maximum<lanes / 2>(m);
    return m[0];
}

// The sum may be 2^12 times what is expected, or as many times less.
constexpr double sum_room = 0x1p12;
constexpr uint64_t exponent_bits = uint64_t{0xfff} << 52;  // and the sign

// 1.5 * 2^k, the middle of a binade, which sums then don't leave; NaN for sums too large or too small for that.
[[gnu::always_inline]] inline double anchor_for(double expected) {
    uint64_t bits = (std::bit_cast<uint64_t>(expected) & exponent_bits) | uint64_t{1} << 51;
    bool is_usual = expected > 0x1p-800 && expected < 0x1p800;
    return is_usual ? std::bit_cast<double>(bits) * (2 * sum_room) : std::numeric_limits<double>::quiet_NaN();
}

// high + low += a * b, but for the last bits of low; where high leaves the anchor's binade, `away` has bits of an exponent.
[[gnu::always_inline]] inline void add_anchored(double& high, double& low, uint64_t& away, double a, double b, double anchor) {
    double s = fma(a, b, high);
    low += fma(a, b, -(s - high));
    high = s;
    away |= std::bit_cast<uint64_t>(s) ^ std::bit_cast<uint64_t>(anchor);
}

// Whether the anchor was a good one: nothing was lost, and low has enough bits. (Those it lacks add up to less than a 16th of
// the sum's last one, in a chunk.)
[[gnu::always_inline]] inline bool is_anchored(uint64_t away, double sum, double expected) {
    return (away & exponent_bits) == 0 && std::fabs(sum) * sum_room > expected;
}

// What a row of v is taken relative to: v_k, k about the largest p; and what an element has of what the other p may add up to, which
// is to tell how large sums are.
struct Reference {
    double v, share;
    Reference() = default;
    Reference(double p, double v, ptrdiff_t n) : v(p == 0 ? 0 : v), share(std::max(std::fabs(1 - p), 0x1p-53) / static_cast<double>(n)) {}
};
inline Reference reference_of(const double* p, const double* v, ptrdiff_t n) {
    ptrdiff_t k = 0;
    double most = no_index;
    for (ptrdiff_t from = 0; from < n; from += chunk) {
        double key = largest_with_index(p + from, std::min(chunk, n - from));
        if (key > most) most = key, k = from + index_of(key);
    }
    return {p[k], v[k], n};
}

constexpr ptrdiff_t sampled = 4;

// How large the sum of p * (v - v_k) may be, from how far the first few v are from v_k; if they are not, all.
inline double expected_sum(const double* v, ptrdiff_t n, Reference r) {
    double widest = 0;
    for (ptrdiff_t i = 0; i < std::min(sampled, n); ++i) widest = std::max(widest, std::fabs(v[i] - r.v));
    for (ptrdiff_t i = sampled; i < n && widest == 0; ++i) widest = std::fabs(v[i] - r.v);
    return widest * (r.share * static_cast<double>(n));
}

// Rows of so many elements are computed side by side, as columns, with sums that are not in lanes.
constexpr ptrdiff_t narrow_row = 31;

inline Pair checked(double high, double low, uint64_t away, double expected) {
    if (is_anchored(away, high + low, expected)) return {high, low};
    return {std::numeric_limits<double>::quiet_NaN(), 0};
}

inline Pair narrow_anchored_sum(const double* p, const double* v, ptrdiff_t n, double v_k, double expected) {
    double anchor = anchor_for(expected), high = anchor, low = 0;
    uint64_t away = 0;
    for (ptrdiff_t i = 0; i < n; ++i) add_anchored(high, low, away, p[i], v[i] - v_k, anchor);
    return checked(high - anchor, low, away, expected);
}

// The sum of p * (v - v_k); NaN where the anchor was not good.
[[gnu::always_inline]] inline Pair anchored_sum(const double* p, const double* v, ptrdiff_t n, double v_k, double expected) {
    if (n <= narrow_row) return narrow_anchored_sum(p, v, n, v_k, expected);
    double anchor = anchor_for(expected), high[lanes], low[lanes] = {};
    uint64_t away[lanes] = {};
    std::fill_n(high, lanes, anchor);
    ptrdiff_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        fetch<false>(p + i + block, lanes);
        fetch<false>(v + i + block, lanes);
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l) add_anchored(high[l], low[l], away[l], p[i + l], v[i + l] - v_k, anchor);
    }
    if (i < n) {
        ptrdiff_t last = n - lanes, again = i - last;
#pragma omp simd
        for (ptrdiff_t l = 0; l < lanes; ++l)
            add_anchored(high[l], low[l], away[l], l < again ? 0 : p[last + l], v[last + l] - v_k, anchor);
    }
    uint64_t any = 0;
    double sizes[lanes];
#pragma omp simd reduction(| : any)
    for (ptrdiff_t l = 0; l < lanes; ++l) high[l] -= anchor, sizes[l] = std::fabs(high[l]), any |= away[l];
    fold_sum<lanes / 2>(high);
    fold_sum<lanes / 2>(low);
    fold_sum<lanes / 2>(sizes);
    bool adds_exactly = sizes[0] < anchor;
    return checked(high[0], low[0], adds_exactly ? any : exponent_bits, expected);
}

}  // namespace
