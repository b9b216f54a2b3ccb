// Choices of the settings that devices and networks take as they are.
#pragma once

namespace jem {

enum class Optimizer { sgd, adam };
enum class LrSchedule { step, cosine };
enum class NormKind { none, batch };
enum class SamplingNorm { batch, running };
enum class NormStatistics { rank, job };  // with several ranks: of each rank's share of a batch, or of all of it

// The linear head of a network.
enum class Head {
    classes,  // one logit a class
    energy,   // one unit: the unnormalised log density without labels. Only networks that have it
};

enum class ConvAlgorithm {
    automatic,  // whatever is fastest; where that is Winograd's, errors grow to about 1e-5 of a tensor's rms
    direct,
};

}  // namespace jem
