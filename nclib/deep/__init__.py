"""Deep networks: data as one tensor, nets with a feature layer, training, feature collection."""
