// exp(x / T) as 2^(x * log2(e) / T), for one element: what loops call is inlined, whatever the compiler thinks of its
// size, so that they vectorise whole.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <type_traits>

namespace {

[[gnu::always_inline]] inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
[[gnu::always_inline]] inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

// A row within +-`tame` (times T) whose powers sum to less than `tame_sum`, which up to 1024 elements do, needs no maximum: no power,
// sum, reciprocal or result leaves the normal numbers. In others, relative to the maximum, elements below -`window` (times T) vanish
// from every result; a maximum beyond `near` (times T) is subtracted first, which is exact there for all that do not vanish.
// Subnormal numbers lose digits, and take some processors a hundred cycles: the largest power is 2^offset, so that none is, and results
// are `up` times larger until the end, those of tame rows `tame_up` times.
template <class T>
struct Format;

template <>
struct Format<float> {
    using Bits = uint32_t;
    static constexpr int mantissa = 23, offset = 80;
    static constexpr double tame_sum = 0x1p68;
    static constexpr float magic = 0x1.8p23f, near = 256, window = 114, tame = 40, tame_up = 0x1p40f, up = 0x1p100f;
    // (2^r - 1) / r on [-1/2, 1/2]: relative error of 1 + r q(r) below 0.007 * 2^-24
    static constexpr double q[] = {0.6931471832359906,    0.24022650880947723,   0.055504015358119971, 0.0096180647143340942,
                                   0.0013341503755056105, 0.0001545847877230062, 1.3366145414907136e-5};
};

template <>
struct Format<double> {
    using Bits = uint64_t;
    static constexpr int mantissa = 52, offset = 300;
    static constexpr double tame_sum = 0x1p516, magic = 0x1.8p52, near = 2048, window = 760, tame = 350, tame_up = 0x1p100, up = 0x1p200;
    // the same: below 0.19 * 2^-53
    static constexpr double q[] = {0x1.62e42fefa39efp-1,  0x1.ebfbdff82c58fp-3,  0x1.c6b08d704a0c6p-5,  0x1.3b2ab6fba4e79p-7,
                                   0x1.5d87fe78a3f94p-10, 0x1.430912f86b7d7p-13, 0x1.ffcbfc6daa2bbp-17, 0x1.62c02242b9c2bp-20,
                                   0x1.b524ebc8e2785p-24, 0x1.e4cf10d82571cp-28, 0x1.e9ec2ea030299p-32, 0x1.c4a29ee381ef1p-36};
};

// By Horner, as a template: a loop over the coefficients would stay a loop, and nothing around it would vectorise.
template <const auto& q, size_t k = 0, class T>
[[gnu::always_inline]] inline T polynomial(T x) {
    constexpr T q_k = static_cast<T>(q[k]);
    if constexpr (k + 1 == std::size(q)) return q_k;
    else return fma(x, polynomial<q, k + 1>(x), q_k);
}

// log2(e) / T as high + low, and the thresholds that scale with T.
template <class T>
struct Rate {
    T high, low, near, window, tame;
    explicit Rate(double temperature) {
        constexpr double log2e = 0x1.71547652b82fep+0, log2e_low = 0x1.777d0ffda0d24p-56;
        double h = log2e / temperature;
        double l = (fma(-h, temperature, log2e) + log2e_low) / temperature;
        high = static_cast<T>(h);
        low = static_cast<T>((h - high) + l);
        near = static_cast<T>(Format<T>::near * temperature);
        window = static_cast<T>(Format<T>::window * temperature);
        tame = static_cast<T>(Format<T>::tame * temperature);
    }
};

// What the elements of a row with maximum m subtract, their lower limit, and the exponent added to every power.
template <class T>
struct Shift {
    using Bits = typename Format<T>::Bits;
    T c, limit;
    Bits bias;
    static Shift none() { return {0, -std::numeric_limits<T>::infinity(), std::bit_cast<Bits>(T(1))}; }
    Shift(T c, T limit, Bits bias) : c(c), limit(limit), bias(bias) {}
    [[gnu::always_inline]] Shift(T m, Rate<T> rate) {
        constexpr Bits one = std::bit_cast<Bits>(T(1)), offset = Format<T>::offset;
        c = std::fabs(m) > rate.near ? m : 0;
        limit = (m - c) - rate.window;
        T t = fma(m - c, rate.high, Format<T>::magic);  // its low bits are K
        bias = one + ((offset - std::bit_cast<Bits>(t)) << Format<T>::mantissa);
    }
};

// |x| as an integer of the same order, NaN beyond all: compilers that mind NaN find the maximum of integers faster.
template <class T>
using Magnitude = std::make_signed_t<typename Format<T>::Bits>;

template <class T>
[[gnu::always_inline]] inline Magnitude<T> magnitude(T x) {
    return std::bit_cast<Magnitude<T>>(x) & std::numeric_limits<Magnitude<T>>::max();
}

// A power of two as value + tail, the tail being the rounding error of the value.
template <class T>
struct Power {
    T value, tail;
};

// Loops put their results so: in a loop's body a name for a struct would keep it from vectorising.
template <class T>
[[gnu::always_inline]] inline void put(T& value, T& tail, Power<T> p) {
    value = p.value, tail = p.tail;
}

// exp(d / T) * 2^-K as 2^(r + rest) * scale, r + rest in [-1/2, 1/2]; accurate enough for a Result.
template <class T>
struct Reduced {
    T r, rest, scale;
};

template <class T>
[[gnu::always_inline]] inline void put(T& r, T& rest, T& scale, Reduced<T> d) {
    r = d.r, rest = d.rest, scale = d.scale;
}

template <class T>
[[gnu::always_inline]] inline void put(T& c, T& limit, typename Format<T>::Bits& bias, Shift<T> s) {
    c = s.c, limit = s.limit, bias = s.bias;
}

template <class Result, class T>
[[gnu::always_inline]] inline Reduced<T> reduced(T d, typename Format<T>::Bits bias, T high, T low) {
    using Bits = typename Format<T>::Bits;
    T t = fma(d, high, Format<T>::magic);  // its low bits are N = rint(d * high)
    T n = t - Format<T>::magic, product = d * high;
    T scale = std::bit_cast<T>(static_cast<Bits>((std::bit_cast<Bits>(t) << Format<T>::mantissa) + bias));
    if constexpr (sizeof(Result) < sizeof(T)) return {fma(d, low, fma(d, high, -n)), 0, scale};
    else return {product - n, fma(d, low, fma(d, high, -product)), scale};
}

// 2^(r + rest); where T is wider than the Result, there is no tail.
template <class Result, class T>
[[gnu::always_inline]] inline Power<T> power_of_two(T r, T rest) {
    T sum = sizeof(Result) < sizeof(T) ? r : r + rest, q = polynomial<Format<Result>::q>(sum), e = fma(sum, q, T(1));
    if constexpr (sizeof(Result) < sizeof(T)) return {e, 0};
    else return {e, fma(rest, q, fma(r, q, T(1) - e))};
}

// 2^(r + rest) * scale.
template <class Result, class T>
[[gnu::always_inline]] inline Power<T> power(Reduced<T> d) {
    T e, tail;
    put(e, tail, power_of_two<Result>(d.r, d.rest));
    return {e * d.scale, sizeof(Result) < sizeof(T) ? 0 : tail * d.scale};
}

template <class Result, class T>
[[gnu::always_inline]] inline Power<T> power(T d, typename Format<T>::Bits bias, T high, T low) {
    return power<Result>(reduced<Result>(d, bias, high, low));
}

// exp((x - c) / T) * 2^-K; below the limit nothing, not even a subnormal number, which some processors are slow with.
template <class Result, class T>
[[gnu::always_inline]] inline Reduced<T> reduced(T x, Shift<T> s, Rate<T> rate) {
    T d = x - s.c, r, rest, scale;
    bool vanishes = d < s.limit;  // NaN stays
    put(r, rest, scale, reduced<Result>(vanishes ? s.limit : d, s.bias, rate.high, rate.low));
    return {r, rest, vanishes ? 0 : scale};
}

template <class Result, class T>
[[gnu::always_inline]] inline Power<T> power(T x, Shift<T> s, Rate<T> rate) {
    return power<Result>(reduced<Result>(x, s, rate));
}

// exp(x / T), of an element of a tame row.
template <class Result, class T>
[[gnu::always_inline]] inline Reduced<T> reduced(T x, Rate<T> rate) {
    return reduced<Result>(x, std::bit_cast<typename Format<T>::Bits>(T(1)), rate.high, rate.low);
}

template <class Result, class T>
[[gnu::always_inline]] inline Power<T> power(T x, Rate<T> rate) {
    return power<Result>(reduced<Result>(x, rate));
}

// The shifts of some rows. Loops over these take them by power_of, or one by one: with a copy of a Shift they would not vectorise.
template <class T, ptrdiff_t size>
struct Shifts {
    alignas(64) T c[size], limit[size];
    alignas(64) typename Format<T>::Bits bias[size];

    [[gnu::always_inline]] Shift<T> operator[](ptrdiff_t i) const { return {c[i], limit[i], bias[i]}; }
    [[gnu::always_inline]] void put(ptrdiff_t i, Shift<T> s) { ::put(c[i], limit[i], bias[i], s); }
    void put_none(ptrdiff_t n) {
        for (ptrdiff_t i = 0; i < n; ++i) put(i, Shift<T>::none());
    }
    // What follows from the maxima; false where one is not finite.
    template <class X>
    bool follow(const X* m, ptrdiff_t n, Rate<T> rate) {
        Magnitude<X> all = 1;
#pragma omp simd reduction(& : all)
        for (ptrdiff_t i = 0; i < n; ++i) {
            all &= m[i] - m[i] == 0 ? 1 : 0;
            put(i, Shift<T>(static_cast<T>(m[i]), rate));
        }
        return all != 0;
    }
};

// An unevaluated sum, high + low.
struct Pair {
    double high, low;
};

// sum += e, and what its rounding lost (Knuth's two-sum).
[[gnu::always_inline]] inline double add_exactly(double& sum, double e) {
    double s = sum + e, b = s - sum, lost = (sum - (s - b)) + (e - b);
    sum = s;
    return lost;
}

// high + low += e + tail.
template <class T>
[[gnu::always_inline]] inline void accumulate(double& high, T& low, double e, double tail) {
    low += add_exactly(high, e) + tail;
}

// One more term of a sum of a Result: in double, plain for float32, compensated for float64; `low` takes the tails.
template <class Result, class Work>
[[gnu::always_inline]] inline void add_term(double& high, Work& low, double e, Work tail) {
    if constexpr (sizeof(Result) == 8) accumulate(high, low, e, tail);
    else if constexpr (sizeof(Work) == sizeof(Result)) high += e, low += tail;
    else high += e;  // wider than its result: no tails
}

// The same of e + tail * scale, the scale being a power of two.
template <class Result, class Work>
[[gnu::always_inline]] inline void add_term(double& high, Work& low, double e, Work tail, Work scale) {
    if constexpr (sizeof(Result) == 8) low += fma(tail, scale, add_exactly(high, e));
    else if constexpr (sizeof(Work) == sizeof(Result)) high += e, low = fma(tail, scale, low);
    else high += e;
}

inline Pair reciprocal(Pair sum) {
    double high = 1 / sum.high;
    return {high, (fma(-high, sum.high, 1.0) - high * sum.low) * high};
}

// A factor in the working type, as high + low.
template <class T>
struct Scale {
    T high, low;
    Scale(T high, T low) : high(high), low(low) {}
    explicit Scale(Pair by) : high(static_cast<T>(by.high)), low(static_cast<T>((by.high - high) + by.low)) {}
};

template <class T>
[[gnu::always_inline]] inline void put(T& high, T& low, Scale<T> by) {
    high = by.high, low = by.low;
}

// Results of a type as wide as T are computed `up` times larger, and so are those of 16 bits in rows that are not tame; float32 that
// comes from double never is subnormal before.
template <class Result, bool tame, class T>
constexpr T raised = sizeof(Result) == sizeof(T) ? (tame ? Format<T>::tame_up : Format<T>::up) : sizeof(T) == 4 && !tame ? Format<T>::up : 1;

// 1 / sum, so much larger and as exact as a Result needs.
template <class Result, bool tame, class T>
[[gnu::always_inline]] inline Scale<T> scale_of(Pair sum) {
    constexpr T up = raised<Result, tame, T>;
    if constexpr (sizeof(Result) < sizeof(T)) return {up / static_cast<T>(sum.high), 0};
    Pair by = reciprocal(sum);
    return Scale<T>(Pair{by.high * up, by.low * up});
}

// A power times a factor.
template <class T>
[[gnu::always_inline]] inline T product(Power<T> p, T high, T low) {
    return fma(p.value, high, fma(p.value, low, p.tail * high));
}

// v / up, v not negative. No product is subnormal: a result that is, is rounded by an addition, the last bits of which it then has. (What
// is multiplied is chosen as an integer: the compiler would find that v will do.)
template <class T>
[[gnu::always_inline]] inline T lowered(T v, T up = Format<T>::up) {
    using Bits = typename Format<T>::Bits;
    const T least = std::numeric_limits<T>::min() * up;
    const Bits of_least = std::bit_cast<Bits>(least);
    T subnormal = std::bit_cast<T>(static_cast<Bits>(std::bit_cast<Bits>(v + least) - of_least));
    T normal = std::bit_cast<T>(std::max(std::bit_cast<Bits>(v), of_least)) * (1 / up);
    return v < least ? subnormal : normal;
}

// A power times such a scale.
template <class Result, bool tame, class T>
[[gnu::always_inline]] inline T scaled(Power<T> p, T high, T low) {
    constexpr T up = raised<Result, tame, T>;
    T v = p.value * high;
    if constexpr (sizeof(Result) == sizeof(T)) v = product(p, high, low);
    if constexpr (up == 1) return v;
    else if constexpr (tame) return v * (1 / up);
    else return lowered(v);
}

template <class Result, bool tame, class T>
[[gnu::always_inline]] inline T scaled(Power<T> p, Scale<T> by) {
    return scaled<Result, tame>(p, by.high, by.low);
}

// |a scale| of any size, so much larger that the largest power times it just does not overflow, nor is the inverse of `up` subnormal.
template <class T>
struct Raised {
    T up, sign, high, low;
    bool none_is_subnormal;  // of the results: rows that are not tame have a smaller scale

    explicit Raised(Pair scale) {
        using Bits = typename Format<T>::Bits;
        using Limits = std::numeric_limits<T>;
        constexpr int tame = Format<T>::tame * 1.45f, largest = std::max(Format<T>::offset, tame), most = Limits::max_exponent - 8;
        int exponent = static_cast<int>(std::bit_cast<uint64_t>(scale.high) >> 52 & 0x7ff) - 1023;
        int steps = std::clamp(Limits::max_exponent - 2 - largest - exponent, -most, most);
        up = std::bit_cast<T>(std::bit_cast<Bits>(T(1)) + (static_cast<Bits>(steps) << Format<T>::mantissa));
        sign = scale.high < 0 ? -1 : 1;
        const Scale<T> by(Pair{scale.high * sign * up, scale.low * sign * up});
        high = by.high, low = by.low;
        none_is_subnormal = exponent >= Limits::min_exponent + tame;
    }
};

}  // namespace
