// The page by itself, without TensorBoard, which calls render() of main.js.
import { render } from "./main.js";

render();
