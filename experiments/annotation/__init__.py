"""Labels of messages: the service between learner and annotator, and the annotators."""
