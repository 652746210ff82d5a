"""Where a model keeps what it knows, and how an edit moves it."""
