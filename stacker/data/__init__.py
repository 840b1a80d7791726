"""From files of any format to a manifest, a split and pixels."""
