"""Long recordings -> utterances: find speech, hear its words, cut at pauses, account for it all."""
