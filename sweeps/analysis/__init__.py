"""Where one system is better than another: by the length of the sentence, by the frequency of the word."""
