"""A host application of the kind Unstick is for, and the driver that gets its jobs stuck and recovered."""
