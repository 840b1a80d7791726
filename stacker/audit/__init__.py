"""What is wrong with data, backbones and disk, before GPU time is spent."""
