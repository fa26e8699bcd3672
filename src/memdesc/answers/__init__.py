"""One question per module. Answers are typed rows; the faces only print them."""
