// Which images have a label where --labels-per-class leaves few.
#pragma once

#include "data/image_set.h"
#include "engine/settings/settings.h"

namespace jem {

// InputError, naming the class, where one has fewer images than the settings want labelled.
void require_labels(const ImageSet& images, const Settings& settings);

// labels_per_class images of each class: the first of it in an order that seed_of_split() makes of the whole set and nothing else goes
// into, so that every rank and a resumed run have the same.
ImageSet labelled_images(const ImageSet& images, const Settings& settings);

}  // namespace jem
