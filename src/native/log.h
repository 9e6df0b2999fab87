// The logarithm of a row's sum, relative to its largest term, as high + low, and what becomes of it.
#pragma once
#include "exp2.h"

namespace {

// 1 / 3 + z / 5 + z^2 / 7 + ..., as many terms as a Result needs for z <= 0.042.
template <class Result, int k = 3>
[[gnu::always_inline]] inline double atanh_series(double z) {
    if constexpr (k == (sizeof(Result) == 8 ? 23 : 13)) return 1.0 / k;
    else return fma(z, atanh_series<Result, k + 2>(z), 1.0 / k);
}

// A double from 0 to 2^51, of an integer.
[[gnu::always_inline]] inline double whole(uint64_t k) { return std::bit_cast<double>(k | std::bit_cast<uint64_t>(0x1p52)) - 0x1p52; }

constexpr double log2_high = 0x1.62e42fefa3800p-1, log2_low = 0x1.ef35793c76730p-45;  // k * log2_high is exact

// log(1 + rest / e), rest >= 0, with one division: where 1 + rest / e is about 2^k, it is k log(2) + 2 atanh(s),
// s = (e + rest - 2^k e) / (e + rest + 2^k e).
[[gnu::always_inline]] inline double log1p_of_quotient(double rest, double e) {
    double total = e + rest;
    uint64_t of_e = std::bit_cast<uint64_t>(e), shift = (std::bit_cast<uint64_t>(total) - of_e + (uint64_t{1} << 51)) >> 52;
    double e_k = std::bit_cast<double>(of_e + (shift << 52));
    double f = shift == 0 ? rest : total - e_k, s = f / (total + e_k), z = s * s;
    return fma(whole(shift), log2_high, 2 * s + 2 * s * z * atanh_series<float>(z));
}

// log(1 + rest + low), rest >= 0, for float64: where 1 + rest is 2^k (1 + f), with 1 + f from sqrt(1/2) to sqrt(2), it is
// k log(2) + 2 atanh(s), s = f / (2 + f). The rounding errors of all that is large are added up beside it.
[[gnu::always_inline]] inline Pair log1p_of(double rest, double low) {
    constexpr uint64_t sqrt_half = 0x3fe6a09e667f3bcd;
    double v = 1, v_low = 0;
    accumulate(v, v_low, rest, 0);
    uint64_t bits = std::bit_cast<uint64_t>(v), shift = (bits - sqrt_half) >> 52;
    double k = whole(shift);
    bool is_large = v >= 2 * std::bit_cast<double>(sqrt_half);  // k > 0; NaN stays
    double f = is_large ? std::bit_cast<double>(bits - (shift << 52)) - 1 : rest;
    double d = 2 + f, s = f / d, z = s * s;
    double others = 2 * s * z * atanh_series<double>(z);
    double s_low = (fma(-s, d, f) - s * (f - (d - 2))) / d;
    double v_rest = (low + (is_large ? v_low : 0)) / v;
    double high = k * log2_high, sum_low = fma(k, log2_low, 2 * s_low) + v_rest + others;
    accumulate(high, sum_low, 2 * s, 0);
    return {high, sum_low};
}

// The logarithm of a row, relative to its largest term, from the sum of the others but for `equal` terms that equal it:
// where one term outweighs all others, they hold more than their sum with it.
template <class Result, class T>
[[gnu::always_inline]] inline Pair log_of(Pair others, double equal, Power<T> largest) {
    if constexpr (sizeof(Result) == 4) {
        double e = largest.value + static_cast<double>(largest.tail);
        return {log1p_of_quotient(others.high + others.low + (equal - 1) * e, e), 0};
    } else {
        double e = largest.value, q = others.high / e;
        double low = (fma(-q, e, others.high) + (others.low - q * largest.tail)) / e, rest = equal - 1;
        accumulate(rest, low, q, 0);
        return log1p_of(rest, low);
    }
}

// Whether the sum of all terms does not tell that of the others well enough: it may lose 10 bits, and 4 for a result of 16.
template <class Result, class T>
inline bool outweighs(Power<T> largest, double sum) {
    constexpr double least = sizeof(Result) == 2 ? 1 + 0x1p-4 : 1 + 0x1p-10;
    return !(sum >= least * largest.value);
}

constexpr double unknown = std::numeric_limits<double>::infinity();

// Makes of a sum its logarithm: of others, see log_of; or of all terms, where one outweighing the others leaves it unknown.
template <class Result, bool of_others, class T>
[[gnu::always_inline]] inline void to_log(double& high, double& low, double equal, Power<T> largest) {
    Pair log = log_of<Result>({high, low}, equal, largest);
    high = of_others || !outweighs<Result>(largest, high) ? log.high : unknown;
    low = log.low;
}

// m + log, rounded once.
template <class T>
inline T shifted(T m, Pair log) {
    double high = m, low = log.low;
    accumulate(high, low, log.high, 0);
    return static_cast<T>(high + low);
}

inline double rounded(Pair log) { return log.high + log.low; }

// half / T as high + low: differences are halved, where that costs nothing, so that they don't overflow before T divides.
template <class T>
struct Inverse {
    T half, high, low;
    explicit Inverse(double temperature) {
        half = temperature < 1 ? T(1) : T(0.5);
        double h = 1 / (half * temperature);
        high = static_cast<T>(h);
        low = static_cast<T>((h - high) + fma(-h, half * temperature, 1.0) / (half * temperature));
    }
};

// (x - m) / T - log: both terms have one sign, nothing cancels.
template <class Result, class T>
[[gnu::always_inline]] inline T log_probability(T x, T m, Inverse<T> inverse, T log) {
    if constexpr (sizeof(Result) < sizeof(T)) return fma(x - m, inverse.half * inverse.high, -log);  // cannot overflow
    T d = fma(x, inverse.half, -m * inverse.half);
    T quotient = d * inverse.high;
    T y = fma(d, inverse.high, fma(d, inverse.low, -log));
    return quotient >= std::numeric_limits<T>::lowest() ? y : quotient - log;  // where y may be inf - inf
}

}  // namespace
