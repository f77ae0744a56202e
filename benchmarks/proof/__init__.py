"""Does fine-tuning on a little distilled data beat the whole raw pool at the same budget? Measured offline."""
