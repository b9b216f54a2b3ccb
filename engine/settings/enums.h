// Choices of the settings that devices and networks take as they are.
#pragma once

namespace jem {

enum class Optimizer { sgd, adam };
enum class LrSchedule { step, cosine };
enum class NetworkKind { wide_resnet, igebm };
enum class NormKind {
    none,
    batch,     // of a channel over the batch
    instance,  // of a channel of an image
    layer,     // of an image
    act,       // none: a scale and a shift of each channel, which the first batch sets
};
enum class ActInit { first, data };       // by which batch: the one that an iteration begins with, or real images whatever it is
enum class NormStatistics { rank, job };  // with several ranks: of each rank's share of a batch, or of all of it
// Where chains that end go in the replay buffer: where they were drawn, or in place of the oldest images.
enum class BufferOrder { in_place, fifo };
enum class SamplingNorm { batch, running };
// How the energies' squares that --energy-l2 weighs are taken: of the mean, of each image, of each real one and of the samples' mean.
enum class EnergyL2 { mean, image, m_jem };
enum class ClassConditional {
    off,
    chain,  // chains climb their class's logit, the loss is of LSE all the same
    loss,   // the loss is of the class's logit, too
};
// What the images of a chain climb.
enum class ChainObjective {
    lse,            // LSE(f(x)) = -E(x): sampling (SADA-JEM, Eq. 3)
    cross_entropy,  // -log p(y|x) of the labels: attacks
    class_logit,    // f(x)[y] of the labels, minus the energy of x and y: samples of a class (JEM, Eq. 6)
    class_energy,   // the energy itself, -f(x)[y]: attacks of JEAT, EB-JDAT
    apart,          // f(x)[y] + |z/|z| - z0/|z0||^2, z the logits and z0 those of where it started: the attack of EB-JDAT's scripts
};
enum class AttackObjective { energy, ce, authors };
enum class AttackNorm { linf, l2 };

// The linear head of a network.
enum class Head {
    classes,  // one logit a class
    energy,   // one unit: the unnormalised log density without labels. Only networks that have it
};

enum class ConvAlgorithm {
    automatic,  // whatever is fastest; where that is Winograd's, errors grow to 2e-5 of a tensor's rms
    direct,
    own,  // as automatic, and kernels of this program that no GPU has proven yet take part in the choice
};

}  // namespace jem
