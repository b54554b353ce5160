"""From photographs and boxes to crops (§4.1, §4.2), and a look at them. Numpy and Pillow; torch for the detector alone.

In reading order: annotations (readers of COCO and of data sets), formats (of what other programs write, and which it
is), values (what such files may hold), coco_masks (COCO's polygons and run lengths to pixels), rules (which boxes
become crops, where backgrounds lie), cutting (one image to its crops), index (crops.json, sources.json, the journal),
check (faults, leaks, what tells X from Y, the contact sheet), build (a source to its splits), detector (boxes without
annotations), demo (the procedural set).
"""
