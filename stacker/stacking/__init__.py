"""Stage three: meta-learners are fitted on what the caches hold, and scored on cases unseen."""
