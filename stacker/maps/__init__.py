"""Stage two: what base models see in images that they never saw.

Base models and decoded images come in; maps of every class, embeddings and logits go out into the
caches. This room may not know of any meta-learner, and no label decides what is made here.
"""
