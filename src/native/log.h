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

// s * s, or 0 where that could be subnormal.
[[gnu::always_inline]] inline double square(double s) {
    double t = s < 0x1p-500 && s > -0x1p-500 ? 0 : s;
    return t * t;
}

// log(1 + rest / e), rest >= 0, with one division: where 1 + rest / e is about 2^k, it is k log(2) + 2 atanh(s),
// s = (e + rest - 2^k e) / (e + rest + 2^k e).
[[gnu::always_inline]] inline double log1p_of_quotient(double rest, double e) {
    double total = e + rest;
    uint64_t of_e = std::bit_cast<uint64_t>(e), shift = (std::bit_cast<uint64_t>(total) - of_e + (uint64_t{1} << 51)) >> 52;
    double e_k = std::bit_cast<double>(of_e + (shift << 52));
    double f = shift == 0 ? rest : total - e_k, s = f / (total + e_k), z = square(s);
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
    double d = 2 + f, s = f / d, z = square(s);
    double others = 2 * s * z * atanh_series<double>(z);
    double s_low = (fma(-s, d, f) - s * (f - (d - 2))) / d;
    double v_rest = (low + (is_large ? v_low : 0)) / v;
    double high = k * log2_high, sum_low = fma(k, log2_low, 2 * s_low) + v_rest + others;
    accumulate(high, sum_low, 2 * s, 0);
    return {high, sum_low};
}

// Functions by their values in Chebyshev's points. log1p(f) / f: from 0 to 1, of double up to 2^-35 and of float up to 2^-22; and from
// sqrt(1/2) - 1 to sqrt(2) - 1, up to 2^-22.
template <class T>
constexpr double log1p_to_1[] = {0.9999999999785376,   -0.499999992726098,    0.3333329204467681,  -0.24999068541803812, 0.19988934638908445,
                                 -0.16587094998578766, 0.13909859913312295,   -0.11270121772120155, 0.08212817261992637,
                                 -0.049102420489767325, 0.02162277662889297,  -0.0060543815118333415, 0.0007950132275741071};
template <>
constexpr double log1p_to_1<float>[] = {0.9999997807585047,  -0.49997174523008664, 0.33271928383426896, -0.2447477417864444,
                                        0.17687476700792984, -0.10685002864172655, 0.04349389981772559, -0.008371152549972984};
constexpr double log1p_near_0[] = {0.9999999681180599,  -0.5000037505628973,  0.333346060234523,   -0.2496890695895267,
                                   0.19913347882373827, -0.17278206066426674, 0.16126247905987104, -0.09895350736906514};
// (atanh(s) / s - 1) / z, z = s^2 from 0 to 1/9, up to 2^-53, and 1 / (1 + e), e from 0 to 1, up to 2^-11.
constexpr double atanh_to_third[] = {0x1.5555555555555p-2, 0x1.9999999999944p-3, 0x1.2492492499d46p-3, 0x1.c71c71bedea97p-4,
                                     0x1.745d19937b1fcp-4, 0x1.3b13515f6f9efp-4, 0x1.111abdc8abe16p-4, 0x1.e0a2d581ab68fp-5,
                                     0x1.bc37f0140c19ep-5, 0x1.32e0d25c9c761p-5, 0x1.401d3e65cdc48p-4};
constexpr double inverse_to_2[] = {0.999702646446625, -0.9848349687778769, 0.8658935474278918, -0.5328575676479334, 0.15224501932798096};

// log(1 + rest), rest >= 0, for 16 bits: where 1 + rest is 2^k (1 + f), it is k log(2) + log1p(f).
[[gnu::always_inline]] inline float log1p_of(float rest) {
    constexpr uint32_t sqrt_half = 0x3f3504f3, one = 0x3f800000;
    uint32_t k = (std::bit_cast<uint32_t>(1 + rest) - sqrt_half) >> 23;
    float down = std::bit_cast<float>(one - (k << 23)), f = fma(rest, down, down - 1);
    return fma(static_cast<float>(static_cast<int32_t>(k)), static_cast<float>(log2_high), f * polynomial<log1p_near_0>(f));
}

// exp(d / T), of an element less the largest one, or 0 where that shows in no Result.
template <class Result, class T>
[[gnu::always_inline]] inline T power_below(T d, Rate<T> rate) {
    constexpr T up = sizeof(T) == 4 ? 0x1p40 : 1, window = static_cast<T>(Format<Result>::window / Format<T>::window);
    T least = -rate.window * window, r, rest, scale;
    bool vanishes = d < least;
    put(r, rest, scale, reduced<Result>(vanishes ? least : d, std::bit_cast<typename Format<T>::Bits>(up), rate.high, rate.low));
    return power_of_two<Result>(r, rest).value * (vanishes ? 0 : scale) * (1 / up);
}

// log(1 + e) of two elements of float64, e = exp((less - more) / T): 2 atanh(s), s = e / (2 + e). The rounding errors of all that is
// large are added up beside it.
[[gnu::always_inline]] inline Pair log_of_pair(double less, double more, Rate<double> rate, double inverse) {
    constexpr double down = 0x1p-80;
    double d = less, d_low = add_exactly(d, -more), e, tail;
    d_low = d < -rate.window ? 0 : d_low, d = d < -rate.window ? -rate.window : d;
    put(e, tail, power<double>(d, std::bit_cast<uint64_t>(1 / down), rate.high, rate.low));
    e *= down, tail = fma(e, d_low * inverse, tail * down);
    double total = 2 + e, by = 1 / total, s = e * by, z = s * s, s_low = (fma(-s, total, e) - s * (e - (total - 2))) * by;
    return {2 * s, fma(tail, polynomial<inverse_to_2>(e), 2 * s_low) + 2 * s * z * polynomial<atanh_to_third>(z)};
}

// The logarithm of a row, relative to its largest term, from the sum of all terms but for `equal` ones that equal it: of all, or, where
// the largest outweighs the others, of these, which hold more then (and none of them equals it).
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

constexpr double unknown = std::numeric_limits<double>::infinity();

// Makes of a sum its logarithm, see log_of.
template <class Result, class T>
[[gnu::always_inline]] inline void to_log(double& high, double& low, double equal, Power<T> largest) {
    Pair log = log_of<Result>({high, low}, equal, largest);
    high = log.high, low = log.low;
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
    T half, high, low, limit;  // below the limit quotients overflow
    explicit Inverse(double temperature) {
        half = temperature < 1 ? T(1) : T(0.5);
        double h = 1 / (half * temperature);
        high = static_cast<T>(h);
        low = static_cast<T>((h - high) + fma(-h, half * temperature, 1.0) / (half * temperature));
        limit = std::max(std::numeric_limits<T>::lowest(), std::numeric_limits<T>::lowest() / high * 2);
    }
};

// (x - m) / T - log: both terms have one sign, nothing cancels.
template <class Result, class T>
[[gnu::always_inline]] inline T log_probability(T x, T m, Inverse<T> inverse, T log) {
    if constexpr (sizeof(Result) < sizeof(T)) return fma(x - m, inverse.half * inverse.high, -log);  // cannot overflow
    T d = fma(x, inverse.half, -m * inverse.half);
    T finite = d < inverse.limit ? inverse.limit : d;  // its product with `low` should not be infinite
    return fma(d, inverse.high, fma(finite, inverse.low, -log));
}

}  // namespace
