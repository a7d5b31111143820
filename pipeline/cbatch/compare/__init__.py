"""Did it get slower, costlier, worse? Two or more runs -> a verdict with its uncertainty."""
